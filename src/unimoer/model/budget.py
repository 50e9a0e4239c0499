"""Equal size: the ranks at which routed experts have as many trainable parameters as one LoRA of a given rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from unimoer.config import AdapterConfig, ModelConfig
from unimoer.config.router import RouterConfig
from unimoer.errors import UserError
from unimoer.model.backbone import read_architecture
from unimoer.model.routers import RouterFactory

TOLERANCE = 0.02
"""Largest difference in parameters between joint arms."""


@dataclass(frozen=True)
class BaseShape:
    """What the size of an adapter follows from."""

    layers: int
    rank_cost: float
    """Parameters of one rank in one decoder layer: d_in + d_out over the adapted projections; the mean over layers."""
    width: int
    """Of what a layer's router reads."""
    inputs: Mapping[str, int]
    """Input width of each group of projections that has an adapter."""
    parameters: int = 0
    """Of the whole base, embeddings included."""


GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


def measure_base(config: ModelConfig) -> BaseShape:
    """Read off the architecture; no weights are loaded.

    Raises:
        UserError: the model is missing or has none of the targeted projections.
    """
    architecture = read_architecture(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    shape = shape_of(model, config.adapter.targets, architecture.num_hidden_layers)
    if not shape.rank_cost:
        raise UserError(f"model.adapter.targets: {config.base} has none of {', '.join(config.adapter.targets)}")
    return shape


def shape_of(model: nn.Module, targets: Sequence[str], layers: int) -> BaseShape:
    """Of a model, which may be on the meta device."""
    cost = width = 0
    inputs: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        leaf = name.rpartition(".")[2]
        if leaf in GROUPS["qkv"]:
            width = module.in_features
        if leaf in targets:
            cost += module.in_features + module.out_features
            inputs |= {group: module.in_features for group, members in GROUPS.items() if leaf in members}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return BaseShape(layers, cost / layers, width, inputs, parameters)


def router_parameters(router: RouterConfig, units: int | Sequence[int], shape: BaseShape) -> int:
    """Trainable parameters of a model's routers, with so many weights each, in all layers or listed for each."""
    factory = RouterFactory(router, shape.layers)
    widths = [shape.width] if router.scope == "layer" else list(shape.inputs.values())
    each = [units] * shape.layers if isinstance(units, int) else units
    with torch.device("meta"):
        routers = nn.ModuleList(
            factory([str(number) for number in range(count)], count, width, layer)
            for layer, count in enumerate(each)
            for width in widths
        )
    return sum(parameter.numel() for parameter in routers.parameters())


def solve_ranks(
    adapter: AdapterConfig, shares: Mapping[str, float], router: RouterConfig, shape: BaseShape, *, rank_wise: bool
) -> dict[str, int | tuple[int, ...]]:
    """Ranks of the experts, in the proportions of `shares`, at the size of one LoRA of rank `adapter.rank`.

    The routers are paid for with ranks. Where the sum does not divide, an expert has one rank more in some layers,
    spread evenly over the depth.

    Raises:
        UserError: the budget is too small for the experts, or no ranks come within 2% of it.
    """
    units = adapter.rank if rank_wise else len(shares)
    overhead = router_parameters(router, units, shape)
    target = adapter.rank * shape.layers * shape.rank_cost
    total = round((target - overhead) / shape.rank_cost)
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    ranks = {name: floor(value) for name, value in exact.items()}
    # Largest remainders first.
    for name in sorted(exact, key=lambda name: ranks[name] - exact[name])[: total - sum(ranks.values())]:
        ranks[name] += 1
    for name, rank in ranks.items():
        if rank < shape.layers:
            raise UserError(
                f"model.adapter.rank: {adapter.rank} is too small for {len(shares)} experts: '{name}' would have less "
                "than one rank a layer"
            )
    found = total * shape.rank_cost + overhead
    if abs(found / target - 1) > TOLERANCE:
        raise UserError(
            f"model.adapter.rank: {adapter.rank} is too small: with {overhead:,} parameters of routers, whole ranks "
            f"come no closer than {abs(found / target - 1):.1%} to the size of one LoRA"
        )
    return {name: _spread(rank, shape.layers) for name, rank in ranks.items()}


def _spread(total: int, layers: int) -> int | tuple[int, ...]:
    if total % layers == 0:
        return total // layers
    return tuple((layer + 1) * total // layers - layer * total // layers for layer in range(layers))
