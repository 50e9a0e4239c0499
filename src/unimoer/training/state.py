"""Everything a run needs to go on bit for bit, saved and loaded by name without knowing what it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unimoer.errors import UserError
from unimoer.files import new_folder, read_json, write_json
from unimoer.model.checkpoint import load_tensors, load_weights, save_tensors
from unimoer.model.unified import UnifiedModel
from unimoer.training.parallel import ALONE, Group
from unimoer.types import Task


class Stateful(Protocol):
    """Has a state between two steps. It is flat: tensors and plain JSON by name."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


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

    def add(self, logs: Mapping[Task, StepTokens], seconds: float) -> None:
        """Count a step that is done."""
        self.step += 1
        self.seconds += seconds
        for task, log in logs.items():
            self.task_steps[task.value] += 1
            self.tokens += log.tokens
            self.computed_tokens += log.computed

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


@dataclass(frozen=True)
class Adapter:
    """All of a model but its base."""

    model: UnifiedModel

    def state_dict(self) -> dict[str, Any]:
        return dict(self.model.state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_weights(self.model, dict(state), Path("adapter"))


@dataclass(frozen=True)
class RandomNumbers:
    """The generators of the CPU and of the run's device, of every process."""

    device: torch.device
    group: Group = ALONE

    def state_dict(self) -> dict[str, Any]:
        found = {"cpu": self.group.stack(torch.get_rng_state())}
        if self.device.type == "cuda":
            found["cuda"] = self.group.stack(torch.cuda.get_rng_state(self.device))
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["cpu"]) != self.group.size:
            raise UserError(f"was saved by {len(state['cpu'])} processes, not {self.group.size}; start as many again")
        # As copies: a generator reads a view from the start of the tensor that it is a view of.
        torch.set_rng_state(state["cpu"][self.group.rank].clone())
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][self.group.rank].clone(), self.device)


def save_state(folder: Path, step: int, parts: Mapping[str, Stateful], group: Group = ALONE) -> None:
    """Write `step-N` completely, then drop the older ones: tensors in `NAME.safetensors`, the rest in `state.json`."""
    states = {name: part.state_dict() for name, part in parts.items()}
    if group.is_main:
        target = folder / f"step-{step}"
        tensors = {name: {k: v for k, v in state.items() if isinstance(v, Tensor)} for name, state in states.items()}
        plain = {name: {k: v for k, v in state.items() if k not in tensors[name]} for name, state in states.items()}
        with new_folder(target) as temporary:
            for name, found in tensors.items():
                if found:
                    save_tensors(found, temporary / f"{name}.safetensors")
            write_json(
                temporary / "state.json", {"tensors": [n for n, found in tensors.items() if found], "plain": plain}
            )
        drop_states(folder, but=target)
    group.wait()


def load_state(folder: Path, parts: Mapping[str, Stateful]) -> None:
    """Put every part back to where `save_state` found it.

    Raises:
        UserError: a file is missing or damaged, or a state does not fit.
    """
    saved = read_json(folder / "state.json")
    if missing := sorted(parts.keys() - saved.get("plain", {}).keys()):
        raise UserError(f"{folder / 'state.json'}: has no state of '{missing[0]}'; remove the folder to start anew")
    for name, part in parts.items():
        tensors = load_tensors(folder / f"{name}.safetensors") if name in saved["tensors"] else {}
        try:
            part.load_state_dict({**saved["plain"][name], **tensors})
        except UserError as error:
            raise UserError(f"{folder}: {name}: {error}") from error


def latest_state(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return max(_states(folder), key=lambda path: int(path.name.removeprefix("step-")), default=None)


def drop_states(folder: Path, *, but: Path | None = None) -> None:
    """Remove resumable checkpoints, and what a kill left half written; the run's lock keeps other writers away."""
    for path in [*_states(folder), *folder.glob(".*.tmp")]:
        if path != but:
            shutil.rmtree(path)


def _states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
