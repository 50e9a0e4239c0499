"""A learned router that is told the task, and a rate of its own for routers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from unimoer.config import OptimizerConfig
from unimoer.model.experts import remove_expert
from unimoer.model.routing import RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.training.optimizer import Optimizer
from unimoer.types import Task

Bases = Callable[[str], Path]
ROUTERS = ("sparsegen", "softmax", "topk", "tsallis", "hierarchical")
EXPERTS = {"embedding": 2, "reranking": 2, "shared": 4}


def build(base: Path, router: str, **more: object) -> UnifiedModel:
    adapter = {"rank": 8, "experts": EXPERTS, "router": {"type": router, **more}}
    return tiny.build(base, adapter=adapter, noise=0.1)


def weights(model: UnifiedModel, task: Task, layer: str = "0") -> torch.Tensor:
    trace = RoutingTrace()
    batch = tiny.batch(tiny.ids([7, 4]))
    with torch.no_grad():
        (model.embed if task is Task.EMBEDDING else model.score)(batch, trace)
    found = trace.decisions[layer].weights
    assert found is not None
    return found


@pytest.mark.parametrize("router", ROUTERS)
def test_the_same_text_is_routed_by_task_only_where_the_router_is_told_it(router: str, bases: Bases) -> None:
    told, blind = build(bases("qwen3"), router, task_aware=True), build(bases("qwen3"), router)
    for model in (told, blind):
        first: torch.nn.Module = model.decoder.layers[0].routers["layer"]  # type: ignore[assignment, index, union-attr]
        if model is told:
            with torch.no_grad():
                first.task_bias.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))  # type: ignore[operator]
        same = torch.allclose(weights(model, Task.EMBEDDING), weights(model, Task.RERANKING))
        # The hierarchical router knows the task anyway, where its gate lets it.
        assert same is (model is blind)
    remove_expert(told, "shared")
    assert weights(told, Task.EMBEDDING).shape[-1] == 2


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_prior_starts_each_task_with_its_own_expert_ahead(router: str, layer: str, bases: Bases) -> None:
    """In every layer and whatever the order of the experts; B is zero, so step 0 is still the base."""
    experts = {"shared": 4, "reranking": 2, "embedding": 2}
    settings = {"type": router, "task_aware": True, "task_prior": 1.0}
    model = tiny.build(bases("qwen3"), adapter={"rank": 8, "experts": experts, "router": settings}).eval()
    for task, place in ((Task.EMBEDDING, 2), (Task.RERANKING, 1)):
        found = weights(model, task, layer)
        assert torch.all(found.argmax(-1) == place)
        if router == "softmax":
            # e / (e + 2), less what small initial logits take or give.
            assert float(found[..., place].mean()) == pytest.approx(0.576, abs=0.1)
    plain = tiny.build(bases("qwen3"))
    batch = tiny.batch(tiny.ids([7, 4]))
    with torch.no_grad():
        assert torch.allclose(model.embed(batch), plain.embed(batch))
    remove_expert(model, "embedding")
    assert weights(model, Task.RERANKING, layer).shape[-1] == 2, "an expert that the prior needed may go"


def test_routers_and_heads_have_rates_of_their_own(bases: Bases) -> None:
    model = build(bases("qwen3"), "sparsegen")
    config = OptimizerConfig(lr=1e-3, router_lr=1e-2, head_lr=1e-4)
    groups = Optimizer(model, config, tuple(Task)).adamw.param_groups
    assert [group["peak_lr"] for group in groups] == [1e-3, 1e-2, 1e-4]
    assert sum(len(group["params"]) for group in groups) == len(model.trainable())
    routers = {id(p) for name, p in model.trainable().items() if ".routers." in name}
    assert {id(parameter) for parameter in groups[1]["params"]} == routers
    plain = Optimizer(tiny.build(bases("qwen3")), OptimizerConfig(lr=1e-3), (Task.EMBEDDING,)).adamw
    assert [group["peak_lr"] for group in plain.param_groups] == [1e-3]
