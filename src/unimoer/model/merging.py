"""Fixed experts as one update a projection, and merged into plain weights.

Where routing depends on the text there is no such update: the experts' weights are another for every text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unimoer.config import ROUTERS, AdapterConfig
from unimoer.errors import UserError
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.decoder import FusedDecoder
from unimoer.model.routers import Router
from unimoer.model.routing import Routing, RoutingContext
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

GROUPS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
"""Of a fused layer, and where `transformers` keeps their projections."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one task adds to one projection, all its experts in one: `scale * b @ a`."""

    a: Tensor
    """`[r, d_in]`"""
    b: Tensor
    """`[d_out, r]`"""
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)


def check_fixed(adapter: AdapterConfig) -> None:
    """Raises: UserError when the weights of experts depend on the text."""
    if adapter.router is not None and not adapter.router.mergeable:
        fixed = ", ".join(name for name, router in ROUTERS.items() if router().mergeable)
        raise UserError(
            f"router '{adapter.router.type}' weighs the experts anew for every text, so they cannot be merged or "
            f"exported as one adapter; plain LoRA can, and the routers {fixed}"
        )


def updates(model: UnifiedModel, task: Task) -> dict[str, Update]:
    """What a task's experts add to each projection, by the projection's name below the base model's body.

    Projections without an expert, and experts without an active rank, are left out.

    Raises:
        UserError: the weights of experts depend on the text.
    """
    check_fixed(model.config.adapter)
    found: dict[str, Update] = {}
    with torch.no_grad():
        for parent, module, router in placed(model):
            routing = None if router is None else _decide(router, task, model.device)
            for name in module.targets:
                update = _stack(module, name, routing)
                if update is not None:
                    found[f"{parent}.{name}"] = update
    return found


def placed(model: UnifiedModel) -> Iterator[tuple[str, MoELoRALinear, Router | None]]:
    """Every adapter: the module that `transformers` keeps its projections in, and who weighs its experts."""
    decoder: Any = model.decoder
    if not isinstance(decoder, FusedDecoder):
        for path, module in decoder.body.named_modules():
            if isinstance(module, MoELoRALinear):
                yield path.rpartition(".")[0], module, None
        return
    layers: Any = decoder.layers
    for index, layer in enumerate(layers):
        routers = dict(layer.routers.items())
        for group, parent in GROUPS.items():
            yield f"layers.{index}.{parent}", getattr(layer, group), routers.get(group, routers.get("layer"))


def _decide(router: Router, task: Task, device: torch.device) -> Routing:
    """What a fixed router decides for any text at all."""
    return router(torch.zeros(1, 1, 1, device=device), RoutingContext(task, torch.ones(1, 1, device=device)))


def _stack(module: MoELoRALinear, name: str, routing: Routing | None) -> Update | None:
    """The experts in use on projection `name`, their ranks one after the other; None when there are none."""
    experts = [expert for expert in (module.ranks if routing is None else routing.experts) if expert in module.ranks]
    parts = [(*module.lora(name, expert)[:2], module.active[expert]) for expert in experts]
    if not any(active for _, _, active in parts):
        return None
    factor = 1.0
    if routing is not None and routing.weights is not None:
        # Fixed weights are equal ones: the first stands for all.
        units = routing.weights.shape[-1]
        factor = float(routing.weights[0, 0, 0] * (units if module.gain is None else module.gain))
    a = torch.cat([a[:active] for a, _, active in parts])
    b = torch.cat([b[:, :active] for _, b, active in parts], dim=1)
    return Update(a, b, module.scale * factor)


def merge(plain: PreTrainedModel, found: Mapping[str, Update]) -> None:
    """Add updates to the weights of a `transformers` model, in float32, and round once to its precision."""
    body: Any = plain.base_model
    with torch.no_grad():
        for path, update in found.items():
            weight = body.get_submodule(path).weight
            a, b = update.a.to(weight.device), update.b.to(weight.device)
            weight.copy_(torch.addmm(weight.float(), b, a, alpha=update.scale))
