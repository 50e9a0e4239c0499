"""Routing by similarity: the nearest pilot's expert, text by text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.model.pilots import Pilots
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

SEQUENCES = tiny.ids([5, 9, 3, 7])


def pilots(vectors: Tensor, owners: list[int]) -> Pilots:
    made = Pilots()
    made.fit(F.normalize(vectors, dim=-1), torch.tensor(owners))
    return made


def test_the_expert_whose_pilots_are_nearest_on_average_is_chosen() -> None:
    """Neither the one that owns the nearest, as in the paper's released code, nor the one that owns the most."""
    made = pilots(torch.tensor([[1.0, 0.0], [-1.0, 0.2], [0.8, 0.6]]), [0, 0, 1])
    assert made.choose(torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])).tolist() == [1, 1, 0]
    crowd = pilots(torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.8, 0.6]]), [0, 0, 1])
    assert crowd.choose(torch.tensor([[1.0, 0.0]])).tolist() == [1]


def test_a_tie_goes_to_the_first_and_nothing_to_an_expert_without_a_pilot() -> None:
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert pilots(same, [0, 1]).choose(same).tolist() == [0, 0]
    # Its similarity, a sum over nothing, would be 0; all others are below.
    assert pilots(same, [2, 2]).choose(-same).tolist() == [2, 2]


def build(base: Path) -> UnifiedModel:
    adapter = {"rank": 4, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": "similarity"}}
    return tiny.build(base, noise=0.2, adapter=adapter)


def hard(model: UnifiedModel, base: Path) -> UnifiedModel:
    """The same experts, each for its task."""
    adapter = {"rank": 4, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": "hard"}}
    twin = tiny.build(base, adapter=adapter)
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin


@torch.no_grad()
def test_without_pilots_and_in_training_the_task_decides(base: Path) -> None:
    model, batch = build(base), tiny.batch(SEQUENCES)
    twin = hard(model, base)
    for fitted in (False, True):
        if fitted:
            model.pilots.fit(F.normalize(torch.randn(2, 32), dim=-1), torch.tensor([1, 1]))
        model.train(fitted)
        assert tiny.relative(model.embed(batch), twin.embed(batch)) < 1e-6
        assert tiny.relative(model.score(batch), twin.score(batch)) < 1e-6


@torch.no_grad()
def test_every_text_of_a_batch_has_the_expert_of_its_own_pilot(base: Path) -> None:
    """Chosen before the first layer, from states of the base that no expert has touched; whatever the task."""
    model, batch = build(base), tiny.batch(SEQUENCES, "left")
    states = model.base_states(batch)
    bare = tiny.build(base, embedding={"pooling": "mean"})
    assert tiny.relative(states, bare.embed(batch)) < 1e-6
    assert torch.allclose(states.norm(dim=1), torch.ones(4))
    model.pilots.fit(states, torch.tensor([0, 1, 1, 0]))
    names = ["embedding", "reranking"]
    chosen = model.pilots.choose(states)
    assert set(chosen.tolist()) == {0, 1}
    for task in Task:
        forward = model.embed if task is Task.EMBEDDING else model.score
        found = forward(batch)
        for row, sequence in enumerate(SEQUENCES):
            alone = tiny.batch([sequence])
            own, other = (forward(alone, expert=names[index])[0] for index in (int(chosen[row]), 1 - int(chosen[row])))
            assert torch.allclose(found[row], own, atol=1e-5)
            assert not torch.allclose(found[row], other, atol=1e-4)


@pytest.mark.parametrize("expert", ["embedding", "reranking"])
@torch.no_grad()
def test_an_expert_can_be_asked_for(expert: str, base: Path) -> None:
    """What the fitting of pilots compares; it is the hard switch's expert, at its full size."""
    model, batch = build(base), tiny.batch(SEQUENCES)
    model.pilots.fit(F.normalize(torch.randn(3, 32), dim=-1), torch.tensor([0, 1, 0]))
    twin = hard(model, base)
    if expert == "embedding":
        assert tiny.relative(model.embed(batch, expert=expert), twin.embed(batch)) < 1e-6
    else:
        assert tiny.relative(model.score(batch, expert=expert), twin.score(batch)) < 1e-6


def test_pilots_are_where_the_model_is(base: Path) -> None:
    """At the start, and fitted from centroids on the device and owners that came from the CPU."""
    router = {"type": "similarity", "pilot_queries": 4}
    config = tiny.model_config(base, adapter={"experts": {"embedding": 2, "reranking": 2}, "router": router})
    model = UnifiedModel(config, torch.device("meta"))
    assert model.pilots is not None
    assert {buffer.device.type for buffer in model.pilots.buffers()} == {"meta"}
    model.pilots.fit(torch.empty(3, 32, device="meta"), torch.tensor([0, 1, 1]))
    assert {buffer.device.type for buffer in model.pilots.buffers()} == {"meta"}
