"""What a router is, and what all learned ones share: reading the hidden states, noise, floor and dropout of weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.config.router import BaseRouterConfig, LearnedRouterConfig
from unimoer.model.routers.reading import TASKS, Standardiser
from unimoer.model.routing import Moments, Routing, RoutingContext

TINY = 1e-12
"""Added to the mean square of a state: padding may be all zeros."""


class Router(nn.Module):
    """Decides, for one decoder layer or one group of its projections, how much of each expert is used.

    Whether it learns, reads the text or is told the task, its `config` says.
    """

    config: BaseRouterConfig
    by_unit: ClassVar[Mapping[str, int]] = {}
    """Tensors that hold something for each weight, and in which dimension."""

    def __init__(self, config: BaseRouterConfig, experts: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.experts = tuple(experts)

    @abstractmethod
    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        """`hidden [B, T, d]`: what the layer or group reads, before the base's norm and in the base's precision.

        The decision itself is made in float32.
        """

    @property
    def trainable(self) -> bool:
        """Whether gradients can move it."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def observe(self, context: RoutingContext, decision: Routing) -> None:
        """Told every decision of training once, outside of what checkpointing computes again."""

    def after_step(self) -> None:
        """Called once after every optimizer step."""

    def serve(self) -> None:
        """Prepare for inference: what does not change between texts is worked out once."""

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

    States are brought to unit size without the base's gain, then centred and scaled (`Standardiser`). `units` is the
    number of weights: one an expert, or one a rank. A subclass turns logits into weights that sum to 1 (or says
    otherwise).
    """

    config: LearnedRouterConfig
    read_count: Tensor
    read_sums: Tensor
    """Of what this step's forward passes have read, by task, until `after_step`."""
    by_unit: ClassVar[Mapping[str, int]] = {"weight": 0, "task_bias": 1}

    def __init__(self, config: LearnedRouterConfig, experts: Sequence[str], units: int, width: int) -> None:
        super().__init__(config, experts)
        self.reading = Standardiser(width)
        self.register_buffer("read_count", torch.zeros(len(TASKS)), persistent=False)
        self.register_buffer("read_sums", torch.zeros(len(TASKS), 2, width), persistent=False)
        # Logits with a deviation of 0.1: every router starts close to uniform, so that every expert gets a gradient.
        self.weight = nn.Parameter(0.1 * torch.randn(units, width))
        self._folded: tuple[Tensor, Tensor] | None = None
        self.task_bias = nn.Parameter(torch.zeros(len(TASKS), units)) if config.task_aware else None
        if self.task_bias is not None and config.task_prior > 0:
            self.task_bias.data += config.task_prior * own_experts(experts)

    @property
    def units(self) -> int:
        return len(self.weight)

    @abstractmethod
    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits `[B, T or 1, U]` -> weights of that shape, and losses of this router, already weighted.

        `x` is what the logits were projected from, for `project`; once served, what `others` make of it.
        """

    def others(self) -> list[nn.Parameter]:
        """Further weights `[k, d]` that `weigh` maps what was read with."""
        return []

    @property
    def counts(self) -> bool:
        """Whether somebody will ask for losses."""
        return self.training or torch.is_grad_enabled()

    @torch.no_grad()
    def serve(self) -> None:
        """Fold scale and centre into one float32 map of all weights."""
        weight = torch.cat([self.weight, *self.others()]).float() * self.reading.scale
        self._folded = weight * weight.shape[1] ** 0.5, weight @ self.reading.centre

    def remove(self, expert: str, kept: Tensor) -> None:
        super().remove(expert, kept)
        if self._folded is not None:
            self.serve()

    def _map(self, folded: tuple[Tensor, Tensor], hidden: Tensor, context: RoutingContext) -> Tensor:
        """`project` of all weights at once: the map is linear, so it comes before norms, means and the centre."""
        weight, centre = folded
        x = hidden.float()
        y = F.linear(x, weight) / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=TINY)
        if self.config.granularity == "sequence":
            y = torch.bmm(context.row, y) / context.count
        elif self.config.granularity == "causal":
            y = self._so_far(y, "folded", context)
        return y - centre

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        if self._folded is not None and not self.counts:
            mapped = self._map(self._folded, hidden, context)
            logits, x = mapped[..., : self.units], mapped[..., self.units :]
            return self._decide(logits, x, context, None)
        x = self._read(hidden.float(), context)
        moments = self._moments(x.detach(), context) if self.training and torch.is_grad_enabled() else None
        if self.training and self.config.noise_epsilon > 0:
            low, high = 1 - self.config.noise_epsilon, 1 + self.config.noise_epsilon
            # One draw a text: numbers for every token took 5% of a training step.
            x = x * x.new_empty(len(x), 1, x.shape[-1]).uniform_(low, high)
        return self._decide(self.project(x, self.weight, context), x, context, moments)

    def _decide(self, logits: Tensor, x: Tensor, context: RoutingContext, moments: Moments | None) -> Routing:
        if self.task_bias is not None:
            logits = logits + self.task_bias[TASKS.index(context.task)]
        if self.config.temperature != 1:
            logits = logits / self.config.temperature
        if self.training and self.config.logit_noise > 0:
            logits = logits + torch.randn_like(logits) * self.config.logit_noise
        clean, losses = self.weigh(logits, x, context)
        weights = self._drop(self._lift(clean)) if self.training else clean
        # What never learns pays for nothing: its losses would reach the experts of earlier layers alone.
        return Routing(self.experts, weights, clean, logits, losses if self.config.learned else {}, moments)

    def _read(self, x: Tensor, context: RoutingContext) -> Tensor:
        """`[B, T, d]`, float32 -> what decisions are made from, centred: `[B, T or 1, d]`."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(norm * norm / x.shape[-1] + TINY)
        if self.config.granularity == "sequence":
            # The mean of normalised states, without ever making them.
            return torch.bmm(context.row * inverse.transpose(1, 2), x) / context.count - self.reading.centre
        return torch.addcmul(-self.reading.centre, x, inverse)

    def _moments(self, x: Tensor, context: RoutingContext) -> Moments:
        """One reading a token, or one a text; of the tokens so far the last, which is the whole text's."""
        if self.config.granularity == "token":
            count, parts = context.row.sum(), [torch.bmm(context.row, part) for part in (x, x * x)]
        else:
            whole = x if x.shape[1] == 1 else torch.bmm(context.row, x) / context.count
            count, parts = x.new_tensor(float(len(x))), [whole, whole * whole]
        return Moments(count, torch.stack([part.sum((0, 1)) for part in parts]))

    def project(self, x: Tensor, weight: nn.Parameter, context: RoutingContext) -> Tensor:
        """A linear map of what a decision reads, scaled, `[B, T or 1, d] -> [B, T or 1, k]`.

        The running mean is taken of the few mapped numbers rather than of the wide states: it commutes with the map.
        """
        # Scaled with the weights, which are fewer.
        y = F.linear(x, weight * self.reading.scale)
        if self.config.granularity != "causal":
            return y
        return self._so_far(y, weight, context)

    def _so_far(self, y: Tensor, whose: object, context: RoutingContext) -> Tensor:
        """The mean over the tokens so far, `[B, T, k]`."""
        running = (y * context.row.transpose(1, 2)).cumsum(1)
        if context.prefix is not None:
            running = context.prefix.add((self, whose), running)
        return running / context.seen

    def observe(self, context: RoutingContext, decision: Routing) -> None:
        if decision.moments is not None:
            place = TASKS.index(context.task)
            self.read_count[place] += decision.moments.count
            self.read_sums[place] += decision.moments.sums

    def after_step(self) -> None:
        self.reading.update(self.read_count, self.read_sums)
        self.read_count.zero_()
        self.read_sums.zero_()

    def _lift(self, weights: Tensor) -> Tensor:
        floor = self.config.weight_floor
        return weights if floor == 0 else torch.lerp(weights, weights.mean(-1, keepdim=True), floor)

    def _drop(self, weights: Tensor) -> Tensor:
        """Leave experts out, whole texts at a time; those left share the sum."""
        rate = self.config.expert_dropout
        if rate == 0:
            return weights
        kept = torch.rand(len(weights), 1, weights.shape[-1], device=weights.device) >= rate
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
