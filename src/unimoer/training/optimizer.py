"""AdamW over what a run's tasks reach, with the rates of its parts and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unimoer.config import OptimizerConfig
from unimoer.model.unified import UnifiedModel
from unimoer.training.schedule import Step, learning_rate
from unimoer.types import Task


class Optimizer:
    """AdamW whose moments are saved under the names of their parameters.

    Args:
        tasks: a specialist for embedding does not carry the score head.
    """

    def __init__(self, model: UnifiedModel, config: OptimizerConfig, tasks: Sequence[Task]) -> None:
        self.config = config
        named = model.trainable(tasks[0] if len(tasks) == 1 else None)
        rates = {"adapter": config.lr, "router": config.router_lr or config.lr, "head": config.head_lr or config.lr}
        members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
        for name, parameter in named.items():
            kind = "head" if name.startswith("head.") else "router" if ".routers." in name else "adapter"
            members[kind].append(parameter)
        groups = [
            {"params": found, "peak_lr": rates[kind], "lr": rates[kind]} for kind, found in members.items() if found
        ]
        self.adamw = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)
        self.parameters = [parameter for found in members.values() for parameter in found]
        self._named = named

    @property
    def lr(self) -> float:
        """Of the adapter."""
        rate: float = self.adamw.param_groups[0]["lr"]
        return rate

    def start(self, step: Step) -> None:
        """Set the step's rates and drop the gradients of the last one."""
        if step.index == 0:
            # A stage begins with moments of its own.
            self.adamw.state.clear()
        factor = learning_rate(self.config, step)
        for group in self.adamw.param_groups:
            # A stage has a rate for the adapter; the others keep their proportion to it.
            stage = 1.0 if step.peak_lr is None else step.peak_lr / self.config.lr
            group["lr"] = group["peak_lr"] * stage * factor
        self.adamw.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Scale the gradients down to `max_grad_norm`; their norm before that."""
        return nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)

    def step(self) -> None:
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._named.items()}
        return {
            f"{names[parameter]}|{slot}": torch.as_tensor(value)
            for parameter, state in self.adamw.state.items()
            for slot, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adamw.state.clear()
        for key, value in state.items():
            name, _, slot = key.rpartition("|")
            parameter = self._named[name]
            # AdamW keeps its step count on the CPU.
            self.adamw.state[parameter][slot] = value if slot == "step" else value.to(parameter.device)
