"""Everything a run needs to go on bit for bit: parameters, optimizer, samplers, random numbers, position."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from unimoer.data.sampling import TaskSampler
from unimoer.files import new_folder, read_json, write_json
from unimoer.model.checkpoint import load_tensors, load_weights, save_tensors
from unimoer.model.unified import UnifiedModel
from unimoer.training.multitask import Combiner
from unimoer.training.routing import RoutingLosses
from unimoer.types import Task


class StepTokens(Protocol):
    """Real tokens of one task's part of a step, and tokens computed with the padding."""

    tokens: int
    computed: int


@dataclass
class Counters:
    """Totals of a run; they survive an interruption."""

    step: int = 0
    task_steps: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0

    def add(self, step: int, logs: Mapping[Task, StepTokens], seconds: float) -> None:
        """Count a step that is done."""
        self.step = step
        self.seconds += seconds
        for task, log in logs.items():
            self.task_steps[task.value] += 1
            self.tokens += log.tokens
            self.computed_tokens += log.computed

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def save_state(
    folder: Path,
    model: UnifiedModel,
    optimizer: torch.optim.Optimizer,
    samplers: dict[Task, TaskSampler],
    routing: RoutingLosses,
    combiner: Combiner,
    counters: Counters,
) -> None:
    """Write `checkpoints/step-N` completely, then drop the older ones."""
    target = folder / f"step-{counters.step}"
    names = {id(parameter): name for name, parameter in model.trainable().items()}
    moments: dict[str, torch.Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            moments[f"{names[id(parameter)]}|{key}"] = torch.as_tensor(value)
    rng = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(model.device)
    with new_folder(target) as temporary:
        save_tensors(model.state(), temporary / "adapter.safetensors")
        save_tensors(moments, temporary / "optimizer.safetensors")
        save_tensors(rng, temporary / "rng.safetensors")
        save_tensors(routing.state_dict(), temporary / "routing.safetensors")
        save_tensors(combiner.state_dict(), temporary / "gradients.safetensors")
        write_json(
            temporary / "state.json",
            {
                "counters": counters.to_json(),
                "samplers": {task.value: sampler.state_dict() for task, sampler in samplers.items()},
            },
        )
    # Besides the older ones, what a kill left half written; the run's lock keeps other writers away.
    for older in [*_steps(folder), *folder.glob(".step-*")]:
        if older != target:
            shutil.rmtree(older)


def latest_state(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return max(_steps(folder), key=_step_number, default=None)


def load_state(
    folder: Path,
    model: UnifiedModel,
    optimizer: torch.optim.Optimizer,
    samplers: dict[Task, TaskSampler],
    routing: RoutingLosses,
    combiner: Combiner,
) -> Counters:
    """Put a run back to where `save_state` left it.

    Raises:
        UserError: a file is missing or damaged, or a tensor does not fit.
    """
    load_weights(model, load_tensors(folder / "adapter.safetensors"), folder / "adapter.safetensors")
    parameters = model.trainable()
    optimizer.state.clear()
    for key, value in load_tensors(folder / "optimizer.safetensors").items():
        name, _, slot = key.rpartition("|")
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU.
        optimizer.state[parameter][slot] = value if slot == "step" else value.to(parameter.device)
    state = read_json(folder / "state.json")
    for task, sampler in samplers.items():
        sampler.load_state_dict(state["samplers"][task.value])
    saved = load_tensors(folder / "routing.safetensors")
    routing.load_state_dict({name: tensor.to(model.device) for name, tensor in saved.items()})
    combiner.load_state_dict(load_tensors(folder / "gradients.safetensors"))
    rng = load_tensors(folder / "rng.safetensors")
    torch.set_rng_state(rng["cpu"])
    if "cuda" in rng and model.device.type == "cuda":
        torch.cuda.set_rng_state(rng["cuda"], model.device)
    return Counters(**state["counters"])


def _steps(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]


def _step_number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
