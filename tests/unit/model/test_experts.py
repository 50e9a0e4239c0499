"""Experts that are frozen, grown or taken out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from unimoer.config import OptimizerConfig
from unimoer.errors import UserError
from unimoer.model.checkpoint import fingerprint, load_model, save_model
from unimoer.model.experts import freeze_expert, grow_expert, remove_expert
from unimoer.model.unified import UnifiedModel
from unimoer.training.optimizer import Optimizer
from unimoer.types import Task

EXPERTS = {"embedding": 2, "reranking": 2, "shared": 4}
BATCH = tiny.batch(tiny.ids([5, 9, 3]))
Make = Callable[..., dict[str, Any]]


def build(base: Path, *, noise: float = 0.1, **adapter: Any) -> UnifiedModel:
    settings = {"rank": 8, "experts": EXPERTS, "router": {"type": "softmax"}} | adapter
    return tiny.build(base, noise=noise, adapter=settings)


@torch.no_grad()
def outputs(model: UnifiedModel) -> Tensor:
    model.eval()
    return torch.cat([model.embed(BATCH).flatten(), model.score(BATCH)])


def train(model: UnifiedModel, steps: int = 3) -> None:
    """With momentum and a weight decay that would show."""
    optimizer = Optimizer(model, OptimizerConfig(lr=1e-2, weight_decay=0.5), tuple(Task)).adamw
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (model.embed(BATCH)[:, :5].sum() + model.score(BATCH).sum()).backward()
        optimizer.step()


def snapshot(model: UnifiedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state().items()}


def test_a_frozen_expert_does_not_move_and_is_saved(base: Path, tmp_path: Path) -> None:
    model = build(base)
    freeze_expert(model, "shared")
    before = snapshot(model)
    train(model)
    after = snapshot(model)
    for name, tensor in before.items():
        # Without the loop's `after_step`, nothing that routers have read is taken in.
        still = name.endswith(".shared") or ".reading." in name
        assert torch.equal(after[name], tensor) == still, name
    save_model(model, tmp_path / "final")
    saved = load_file(tmp_path / "final" / "adapter.safetensors")
    assert sum(name.endswith(".shared") for name in saved) == 2 * 4 * 3
    assert torch.equal(outputs(load_model(tmp_path / "final", tiny.CPU)), outputs(model))


def test_an_expert_frozen_in_mid_training_stops_at_once(base: Path) -> None:
    """Its momentum is there, and moves nothing."""
    model = build(base)
    optimizer = Optimizer(model, OptimizerConfig(lr=1e-2, weight_decay=0.5), tuple(Task)).adamw
    for step in range(4):
        if step == 2:
            freeze_expert(model, "embedding")
            before = snapshot(model)
        optimizer.zero_grad()
        model.embed(BATCH)[:, :5].sum().backward()
        optimizer.step()
    moved = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, before[name])}
    assert not any(name.endswith(".embedding") for name in moved)
    assert any(name.endswith(".shared") for name in moved)


def test_frozen_experts_do_not_change_the_fingerprint_of_the_base(base: Path) -> None:
    model = build(base)
    before = fingerprint(model)
    for expert in EXPERTS:
        freeze_expert(model, expert)
    assert fingerprint(model) == before


def test_an_unknown_expert_is_named_with_the_nearest(base: Path) -> None:
    model = build(base)
    for act in (freeze_expert, remove_expert, partial(grow_expert, ranks=1)):
        with pytest.raises(UserError, match=r"no expert 'sharde'; did you mean 'shared'\?"):
            act(model, "sharde")


def test_growing_changes_nothing_until_the_new_ranks_have_learned(base: Path) -> None:
    model = build(base, noise=0.0)
    grow_expert(model, "shared", 2)
    fresh = snapshot(model)
    train(model)
    after = snapshot(model)
    for name, tensor in after.items():
        if ".b." in name and name.endswith(".shared"):
            assert not tensor[:, 2:].any(), name
            assert tensor[:, :2].any(), name
            # Those of A decay, for which no gradient is needed; they have not been turned.
            a, first = (
                found[name.replace(".b.", ".a.")].unflatten(0, (-1, 4))[:, 2:].flatten() for found in (after, fresh)
            )
            assert torch.nn.functional.cosine_similarity(a, first, dim=0) > 1 - 1e-6
    before = outputs(model)
    grow_expert(model, "shared", 4)
    assert torch.equal(outputs(model), before)
    train(model)
    for name, tensor in snapshot(model).items():
        assert not (".b." in name and name.endswith(".shared")) or tensor[:, 2:].any(), name
    assert not torch.equal(outputs(model), before)


@pytest.mark.parametrize("ranks", [-1, 5])
def test_an_expert_has_the_ranks_it_was_built_with(ranks: int, base: Path) -> None:
    model = build(base)
    with pytest.raises(UserError, match=f"expert 'shared' was built with 4 ranks, not {ranks}"):
        grow_expert(model, "shared", ranks)


def test_active_ranks_are_part_of_a_checkpoint(base: Path, tmp_path: Path) -> None:
    """Layers that have fewer use what they have; where all are in use, nothing is written."""
    experts = {"embedding": 2, "reranking": (3, 1, 2), "shared": 4}
    model = build(base, experts=experts)
    whole = outputs(model)
    save_model(model, tmp_path / "whole")
    assert "active_ranks" not in json.loads((tmp_path / "whole" / "unimoer.json").read_text())
    grow_expert(model, "reranking", 2)
    grow_expert(model, "shared", 0)
    expected = outputs(model)
    assert not torch.allclose(expected, whole, atol=1e-3)
    save_model(model, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "unimoer.json").read_text())["active_ranks"] == {"reranking": 2, "shared": 0}
    loaded = load_model(tmp_path / "cut", tiny.CPU)
    assert torch.equal(outputs(loaded), expected)
    grow_expert(loaded, "reranking", 3)
    grow_expert(loaded, "shared", 4)
    assert torch.equal(outputs(loaded), whole)


ROUTERS = ["softmax", "sparsegen", "topk", "tsallis", "hierarchical", "random_frozen", "uniform"]


@pytest.mark.parametrize("router", ROUTERS)
def test_without_an_expert_the_others_share_its_weight(router: str, base: Path, tmp_path: Path) -> None:
    model = build(base, router={"type": router, "granularity": "token"} if router != "uniform" else {"type": router})
    remove_expert(model, "reranking")
    assert model.config.adapter.experts == {"embedding": 2, "shared": 4}
    assert not any("reranking" in name for name in model.state())
    found = outputs(model)
    # What is left is whole: it trains, and loads as what it is.
    save_model(model, tmp_path / "final")
    assert torch.equal(outputs(load_model(tmp_path / "final", tiny.CPU)), found)
    train(model, 1)


def test_an_expert_that_is_not_used_is_not_missed(base: Path) -> None:
    """The gain stays that of three experts, by which the weights were multiplied."""
    model = build(base, router={"type": "topk", "k": 2})
    for name, buffer in model.named_buffers():
        if name.endswith("routers.layer.bias"):
            buffer[1] = -10.0
    before = outputs(model)
    remove_expert(model, "reranking")
    assert model.config.adapter.gain == 3
    assert tiny.relative(outputs(model), before) < 1e-5


def test_a_uniform_model_loses_what_the_expert_added(base: Path) -> None:
    model, twin = build(base, router={"type": "uniform"}), build(base, router={"type": "uniform"})
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith(".reranking") and ".b." in name:
                parameter.zero_()
    remove_expert(model, "reranking")
    assert tiny.relative(outputs(model), outputs(twin)) < 1e-5


def test_a_rank_wise_expert_takes_its_weights_along(base: Path, tmp_path: Path) -> None:
    model = build(base, rank_wise=True, router={"type": "topk", "k": 3})
    weight = model.decoder.layers[1].routers["layer"].weight.detach().clone()
    remove_expert(model, "reranking")
    kept = [0, 1, 4, 5, 6, 7]
    assert torch.equal(model.decoder.layers[1].routers["layer"].weight, weight[kept])
    assert len(model.decoder.layers[1].routers["layer"].bias) == 6
    save_model(model, tmp_path / "final")
    assert torch.equal(outputs(load_model(tmp_path / "final", tiny.CPU)), outputs(model))


def test_pilots_of_a_removed_expert_go_with_it(base: Path) -> None:
    experts = {"spare": 2, "embedding": 2, "reranking": 2}
    model = build(base, experts=experts, router={"type": "similarity"})
    model.pilots.fit(torch.eye(32)[:5], torch.tensor([0, 1, 2, 0, 2]))
    remove_expert(model, "spare")
    assert model.pilots.owners.tolist() == [0, 1, 1]
    assert torch.equal(model.pilots.vectors, torch.eye(32)[[1, 2, 4]])


@pytest.mark.parametrize(
    ("adapter", "expert", "message"),
    [
        (
            {"router": {"type": "hard"}},
            "embedding",
            "router 'hard' needs an expert 'embedding'; there are reranking, s",
        ),
        ({"router": {"type": "hard_shared"}}, "shared", "router 'hard_shared' needs an expert 'shared'"),
        ({"experts": {"a": 2, "b": 2}}, "a", "router 'softmax' has one expert only"),
        ({"experts": None, "router": None}, "shared", "it is the last one"),
        ({"experts": {"only": 4}, "router": None}, "only", "it is the last one"),
        ({"router": {"type": "topk", "k": 3}}, "shared", "router.k: 3 of 2 experts"),
        ({"experts": {"a": (2, 0, 2), "b": 2, "c": 2}}, "c", "the layers do not weigh the same experts"),
    ],
)
def test_an_expert_that_is_needed_stays(adapter: dict[str, Any], expert: str, message: str, base: Path) -> None:
    model = build(base, **adapter)
    before = outputs(model)
    with pytest.raises(UserError, match=f"expert '{expert}' cannot be removed: .*{message}") as caught:
        remove_expert(model, expert)
    assert "\n" not in str(caught.value)
    assert torch.equal(outputs(model), before)


def test_a_spare_expert_of_a_task_router_may_go(base: Path) -> None:
    model = build(base, router={"type": "hard"})
    before = outputs(model)
    remove_expert(model, "shared")
    assert torch.equal(outputs(model), before)
