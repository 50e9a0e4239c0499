"""What passes between routers, adapters and losses: a decision, what it is made from, the trace of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from unimoer.model.prefix import Prefix
from unimoer.types import Task


@dataclass(frozen=True)
class RoutingContext:
    """What a router may read besides hidden states: an argument of the forward pass, never a module's memory.

    `choice` `[B]` is the expert of each row where that was decided before the first layer (similarity routing).
    """

    task: Task
    mask: Tensor
    """`[B, T]`, 1 for real tokens."""
    choice: Tensor | None = None
    bare: bool = False
    """Use no expert at all."""
    prefix: Prefix | None = None
    """What stands before all rows, if that is computed apart."""

    @cached_property
    def row(self) -> Tensor:
        """The mask as float32, `[B, 1, T]`: times states it is their sum over real tokens. Made once for all layers."""
        return self.mask.float().unsqueeze(1)

    @cached_property
    def count(self) -> Tensor:
        """Number of real tokens, `[B, 1, 1]`, at least 1."""
        return self.row.sum(-1, keepdim=True).clamp(min=1)

    @cached_property
    def seen(self) -> Tensor:
        """Number of real tokens up to each place, `[B, T, 1]`, at least 1."""
        before = self.prefix.length if self.prefix is not None and self.prefix.read else 0
        return (self.row.transpose(1, 2).cumsum(1) + before).clamp(min=1)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over what the decisions of one forward pass have read, as distances from a router's centre."""

    count: Tensor
    sums: Tensor
    """Of the distances and of their squares, `[2, d]`."""


@dataclass(frozen=True, slots=True)
class Routing:
    """One decision: which experts are used, and how much of each.

    `weights` `[B, T or 1, E]`, float32, in the order of `experts`; None adds them up as they are, which needs neither
    a product nor the experts that are left out. `clean` are a learned router's weights before floor and dropout;
    `logits` has their shape; `losses` are a router's own, already weighted; `moments`, in training alone, are those
    of what it has read.
    """

    experts: tuple[str, ...]
    weights: Tensor | None = None
    clean: Tensor | None = None
    logits: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Moments | None = None


@dataclass(slots=True)
class RoutingTrace:
    """Every decision of one forward pass, in order; given to the model empty."""

    context: RoutingContext | None = None
    decisions: dict[str, Routing] = field(default_factory=dict)
    """By name of the router: `0` for a layer's, `0.qkv` for that of its projections."""
