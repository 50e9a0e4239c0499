"""Which experts a model uses for one text, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unimoer.data.collate import pad
from unimoer.losses.balance import mean_weights
from unimoer.model.routing import RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task


@torch.inference_mode()
def routing_by_layer(model: UnifiedModel, ids: Sequence[int], task: Task) -> dict[str, Any]:
    """Share of each expert in each decision of one forward pass, a mean over the text's tokens.

    `{"experts": [...], "layers": [{"name": "0", "weights": {expert: share}}]}`; nothing in it for a model without
    experts.
    """
    adapter = model.config.adapter
    experts = list(adapter.experts or {})
    if not adapter.is_routed:
        return {"experts": [], "layers": []}
    trace = RoutingTrace()
    batch = pad([ids], pad_id=model.tokenizer.pad_token_id, padding=model.config.padding).to(str(model.device))
    if task is Task.EMBEDDING:
        model.embed(batch, trace)
    else:
        model.score(batch, trace)
    layers = []
    for name, decision in trace.decisions.items():
        shares = dict.fromkeys(experts, 0.0)
        if decision.weights is None:
            shares |= dict.fromkeys(decision.experts, 1 / len(decision.experts))
        else:
            means = mean_weights(decision.weights, batch.attention_mask).tolist()
            # One weight an expert, or one for each of its ranks in this layer.
            owners = adapter.owners(int(name.split(".")[0])) if adapter.rank_wise else decision.experts
            for owner, share in zip(owners, means, strict=True):
                shares[owner] += share
        layers.append({"name": name, "weights": shares})
    return {"experts": experts, "layers": layers}
