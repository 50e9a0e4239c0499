"""A model that was trained in two stages, as one LoRA on the base that the first stage began with.

The second stage began at a base into which the first one's LoRA had been merged. Two updates of one matrix are one of
both ranks together, so no copy of that merged base, as large as the base itself, has to travel with the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimoer.config import AdapterConfig, ModelConfig
from unimoer.errors import UserError
from unimoer.model.checkpoint import load_tensors, load_weights, read_description, verify_golden
from unimoer.model.unified import UnifiedModel


def join_stages(first: Path, last: Path, device: torch.device) -> UnifiedModel:
    """The model of checkpoint `last`, on the base of checkpoint `first`; outputs differ by rounding.

    Raises:
        UserError: one of them is no plain LoRA, they adapt different projections, or `last` was not trained on the base
            that `first` gives when it is merged.
    """
    one, two = read_description(first), read_description(last)
    for folder, description in ((first, one), (last, two)):
        adapter: AdapterConfig = description["model"].adapter
        if adapter.experts is not None or adapter.router is not None:
            raise UserError(f"{folder}: has routed experts; stages can be joined where both are one LoRA")
    config = _joined(one["model"], two["model"], first)
    earlier, later = (load_tensors(folder / "adapter.safetensors") for folder in (first, last))
    for name, tensor in later.items():
        # B by its rows, A by its columns: ranks may differ.
        side = {"a": 1, "b": 0}.get(name.split(".")[-2])
        if side is not None and (name not in earlier or earlier[name].shape[side] != tensor.shape[side]):
            raise UserError(f"{first}: is of another model than {last}: {name} does not fit")
    model = UnifiedModel(config, device)
    tensors = _stack(earlier, later, one, two)
    load_weights(model, tensors, last)
    try:
        verify_golden(model, two["golden"], last)
    except UserError as error:
        raise UserError(f"{last}: was not trained on the base that {first} gives when it is merged: {error}") from None
    return model


def _joined(one: ModelConfig, two: ModelConfig, first: Path) -> ModelConfig:
    if one.adapter.targets != two.adapter.targets:
        raise UserError(f"{first}: adapts other projections than the stage after it")
    rank = one.adapter.rank + two.adapter.rank
    adapter = two.adapter.model_copy(update={"rank": rank, "alpha": two.adapter.alpha / two.adapter.rank * rank})
    found = {"base": one.base, "revision": one.revision, "layers": one.layers, "adapter": adapter}
    return two.model_copy(update=found)


def _stack(
    earlier: dict[str, Tensor], later: dict[str, Tensor], one: dict[str, Any], two: dict[str, Any]
) -> dict[str, Tensor]:
    """The later stage's tensors, each A and B with the earlier one's ranks before its own."""
    (rank, scale), (own_rank, own_scale) = (
        (adapter.rank, adapter.alpha / adapter.rank) for adapter in (one["model"].adapter, two["model"].adapter)
    )
    found = {}
    for name, tensor in later.items():
        kind = name.split(".")[-2]
        if kind == "a":
            # Projections of one input stand one after the other, each with its own ranks.
            parts = (earlier[name].unflatten(0, (-1, rank)), tensor.unflatten(0, (-1, own_rank)))
            found[name] = torch.cat(parts, dim=1).flatten(0, 1)
        elif kind == "b":
            found[name] = torch.cat([earlier[name] * (scale / own_scale), tensor], dim=1)
        else:
            found[name] = tensor
    return found
