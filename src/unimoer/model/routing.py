"""What passes between routers, adapters and losses: a decision, what it is made from, the trace of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from unimoer.types import Task


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Routing:
    """One decision: which experts are used, and how much of each.

    `weights` `[B, T or 1, E]`, float32, in the order of `experts`; None adds them up as they are, which needs neither
    a product nor the experts that are left out. `clean` are a learned router's weights before floor and dropout;
    `logits` has their shape; `losses` are a router's own, already weighted.
    """

    experts: tuple[str, ...]
    weights: Tensor | None = None
    clean: Tensor | None = None
    logits: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class RoutingTrace:
    """Every decision of one forward pass, in order; given to the model empty."""

    context: RoutingContext | None = None
    decisions: dict[str, Routing] = field(default_factory=dict)
    """By name of the router: `0` for a layer's, `0.qkv` for that of its projections."""
