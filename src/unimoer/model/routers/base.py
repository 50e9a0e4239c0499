"""What a router is, and what all learned ones share: reading the hidden states, noise, floor and dropout of weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.config.router import LearnedRouterConfig
from unimoer.model.routing import Routing, RoutingContext
from unimoer.types import Task

TASKS = tuple(Task)


class Router(nn.Module):
    """Decides, for one decoder layer or one group of its projections, how much of each expert is used.

    It reads the normalised input of what it routes, whose scale does not grow with depth: raw residual states would
    make the logits so large that a sparse router starts with one expert.
    """

    by_unit: ClassVar[Mapping[str, int]] = {}
    """Tensors that hold something for each weight, and in which dimension."""

    def __init__(self, experts: Sequence[str]) -> None:
        super().__init__()
        self.experts = tuple(experts)

    @abstractmethod
    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        """`hidden [B, T, d]` in the base's precision; the decision itself is made in float32."""

    def after_step(self) -> None:
        """Called once after every optimizer step."""

    def remove(self, expert: str, kept: Tensor) -> None:
        """Take an expert out for good; `kept` are the places of the weights that stay."""
        self.experts = tuple(name for name in self.experts if name != expert)
        for name, dimension in self.by_unit.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            rest = tensor.detach().index_select(dimension, kept)
            setattr(self, name, nn.Parameter(rest, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else rest)


class LearnedRouter(Router):
    """Linear logits over the experts, without bias, from one token, the tokens so far, or the whole text.

    `units` is the number of weights: one an expert, or one a rank. A subclass turns logits into weights that sum to 1
    (or says otherwise).
    """

    by_unit: ClassVar[Mapping[str, int]] = {"weight": 0, "task_bias": 1}

    def __init__(self, config: LearnedRouterConfig, experts: Sequence[str], units: int, width: int) -> None:
        super().__init__(experts)
        self.base = config
        # Small logits: every router starts close to uniform, so that every expert gets a gradient.
        self.weight = nn.Parameter(torch.randn(units, width) * (0.1 * width**-0.5))
        self.task_bias = nn.Parameter(torch.zeros(len(TASKS), units)) if config.task_aware else None
        if self.task_bias is not None and config.task_prior > 0:
            self.task_bias.data += config.task_prior * own_experts(experts)

    @property
    def units(self) -> int:
        return len(self.weight)

    @abstractmethod
    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits `[B, T or 1, U]` -> weights of that shape, and losses of this router, already weighted.

        `x` is what the logits were projected from, for `project`.
        """

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        x = hidden.float()
        if self.base.granularity == "sequence":
            x = torch.bmm(context.row, x) / context.count
        if self.training and self.base.noise_epsilon > 0:
            # Never in place: in float32 `x` is the very tensor that the projections read.
            low, high = 1 - self.base.noise_epsilon, 1 + self.base.noise_epsilon
            # One draw a text: numbers for every token took 5% of a training step.
            x = x * x.new_empty(len(x), 1, x.shape[-1]).uniform_(low, high)
        logits = self.project(x, self.weight, context)
        if self.task_bias is not None:
            logits = logits + self.task_bias[TASKS.index(context.task)]
        if self.base.temperature != 1:
            logits = logits / self.base.temperature
        if self.training and self.base.logit_noise > 0:
            logits = logits + torch.randn_like(logits) * self.base.logit_noise
        clean, losses = self.weigh(logits, x, context)
        weights = self._drop(self._lift(clean)) if self.training else clean
        return Routing(self.experts, weights, clean, logits, losses)

    def project(self, x: Tensor, weight: Tensor, context: RoutingContext) -> Tensor:
        """A linear map of what a decision reads, `[B, T or 1, d] -> [B, T or 1, k]`.

        The running mean is taken of the few mapped numbers rather than of the wide states: it commutes with the map.
        """
        y = F.linear(x, weight)
        if self.base.granularity != "causal":
            return y
        return (y * context.row.transpose(1, 2)).cumsum(1) / context.seen

    def _lift(self, weights: Tensor) -> Tensor:
        floor = self.base.weight_floor
        return weights if floor == 0 else torch.lerp(weights, weights.mean(-1, keepdim=True), floor)

    def _drop(self, weights: Tensor) -> Tensor:
        """Leave experts out, whole texts at a time; those left share the sum."""
        if self.base.expert_dropout == 0:
            return weights
        kept = torch.rand(len(weights), 1, weights.shape[-1], device=weights.device) >= self.base.expert_dropout
        left = weights * kept
        total, remaining = weights.sum(-1, keepdim=True), left.sum(-1, keepdim=True)
        # A decision whose experts are all gone keeps them all.
        return torch.where(remaining > 0, left * total / remaining.clamp(min=1e-9), weights)


def own_experts(experts: Sequence[str]) -> Tensor:
    """1 where an expert is named after the task, `[tasks, E]`."""
    return torch.tensor([[float(expert == task.value) for expert in experts] for task in TASKS])


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[B, T or 1]` over real tokens; over rows where there is one value a row."""
    if values.shape[1] == 1:
        return values.mean()
    real = mask.to(values.dtype)
    return (values * real).sum() / real.sum().clamp(min=1)
