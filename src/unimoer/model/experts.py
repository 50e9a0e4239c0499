"""Surgery on experts: freeze one, grow it rank by rank, take it out for good."""

from __future__ import annotations

import torch

from unimoer.config import parse_model
from unimoer.config.router import LearnedRouterConfig
from unimoer.errors import UserError, did_you_mean
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.routers import Router
from unimoer.model.unified import UnifiedModel


def freeze_expert(model: UnifiedModel, expert: str) -> None:
    """Train an expert no further; it stays in use."""
    for adapter in _having(model, expert):
        adapter.a[expert].requires_grad_(False)
        adapter.b[expert].requires_grad_(False)


def grow_expert(model: UnifiedModel, expert: str, ranks: int) -> None:
    """Use the first `ranks` of the ranks that an expert was built with; see `MoELoRALinear.set_active`.

    A layer in which it has fewer uses all of them.
    """
    adapters = _having(model, expert)
    most = max(adapter.ranks[expert] for adapter in adapters)
    if not 0 <= ranks <= most:
        raise UserError(f"expert '{expert}' was built with {most} ranks, not {ranks}")
    for adapter in adapters:
        adapter.set_active(expert, min(ranks, adapter.ranks[expert]))


def active_ranks(model: UnifiedModel) -> dict[str, int]:
    """What `grow_expert` was told, of the experts that do not use all their ranks."""
    found: dict[str, int] = {}
    for adapter in model.adapters().values():
        for expert, rank in adapter.ranks.items():
            if adapter.active[expert] < rank:
                found[expert] = max(adapter.active[expert], found.get(expert, 0))
    return found


def remove_expert(model: UnifiedModel, expert: str) -> None:
    """Take an expert out for good, and its unit out of the routers; weights are normalised over those left.

    A learned router keeps its gain: without an expert that it does not use, the model is what it was. To be called
    before an optimizer is built.

    Raises:
        UserError: there is no such expert, or the router cannot do without it.
    """
    adapters, old = _having(model, expert), model.config.adapter
    content = old.model_dump(mode="json")
    content["experts"] = {name: rank for name, rank in (old.experts or {}).items() if name != expert}
    if not content["experts"]:
        raise UserError(f"expert '{expert}' cannot be removed: it is the last one")
    owners = [old.owners(layer) for layer in range(old.layers or 1)]
    weighed = old.router is not None and not old.router.named_experts
    if weighed and len({(len(units), *dict.fromkeys(units)) for units in owners}) > 1:
        raise UserError(f"expert '{expert}' cannot be removed: the layers do not weigh the same experts")
    learned = isinstance(old.router, LearnedRouterConfig)
    if learned:
        content["gain"] = old.gain or len(owners[0])
        # How routers began is in their weights; the experts that it needed may go.
        content["router"]["task_prior"] = 0.0
    where = f"expert '{expert}' cannot be removed"
    model.config = parse_model(model.config.model_dump(mode="json") | {"adapter": content}, where)
    for adapter in adapters:
        adapter.remove(expert)
        if learned:
            adapter.gain = model.config.adapter.gain
    for name, module in model.named_modules():
        if isinstance(module, Router):
            units = owners[_layer(name) if old.layers else 0]
            kept = [place for place, owner in enumerate(units) if owner != expert]
            module.remove(expert, torch.tensor(kept, device=model.device))
    if model.pilots is not None:
        model.pilots.remove(list(old.experts or {}).index(expert))


def _having(model: UnifiedModel, expert: str) -> list[MoELoRALinear]:
    """The adapters that have an expert.

    Raises:
        UserError: none has.
    """
    found = [adapter for adapter in model.adapters().values() if expert in adapter.ranks]
    if not found:
        names = sorted({name for adapter in model.adapters().values() for name in adapter.ranks})
        raise UserError(f"no expert '{expert}'{did_you_mean(expert, names)}; there are {', '.join(names)}")
    return found


def _layer(name: str) -> int:
    """The decoder layer that a module of this name is in."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
