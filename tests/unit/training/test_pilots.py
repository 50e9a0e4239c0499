"""Pilots are made of examples that no expert was trained on, and belong to the expert that did best on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.config import TrainSpec
from unimoer.data.collate import Collator
from unimoer.data.prepare import TrainingDomain
from unimoer.model.unified import UnifiedModel
from unimoer.training import pilots
from unimoer.training.objectives import compute_loss
from unimoer.training.pilots import clear_pilots, fit_pilots
from unimoer.training.setup import build_collator

Make = Callable[..., dict[str, Any]]


World = tuple[TrainSpec, UnifiedModel, Collator, dict[str, TrainingDomain]]


@pytest.fixture
def world(experiment: Make, base: Path) -> World:
    """A model with two different experts, and ten pilot queries of each domain."""
    arm = {"experts": {"embedding": 1, "reranking": 1}, "router": {"type": "similarity", "pilot_queries": 10}}
    changes = {"model__adapter": {"rank": 4, "alpha": 8.0}, "training__embedding__negatives": 1}
    config = tiny.parsed(experiment(custom_arms={"mine": arm}, **changes))
    spec, domains = tiny.train_spec(config, "mine"), tiny.domains(config)
    model = UnifiedModel(spec.model, tiny.CPU)
    tiny.stir(model, 0.2)
    return spec, model, build_collator(spec, model, domains), domains


def fit(world: World) -> tuple[Tensor, Tensor]:
    spec, model, collator, domains = world
    fit_pilots(model, domains, collator, spec)
    return model.pilots.vectors.clone(), model.pilots.owners.clone()


def test_a_pilot_is_the_mean_of_the_texts_that_its_expert_won(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert 0 is made to win the even queries and expert 1 the odd ones, on both tasks and domains."""
    seen: list[dict[str, Tensor]] = []
    real = pilots._texts

    def losses(model: Any, batch: Any, expert: str, config: Any) -> Tensor:
        return (torch.arange(10) % 2 == (expert == "embedding")).float()

    def texts(model: Any, batch: Any) -> dict[str, Tensor]:
        seen.append(real(model, batch))
        return seen[-1]

    monkeypatch.setattr(pilots, "query_losses", losses)
    monkeypatch.setattr(pilots, "_texts", texts)
    vectors, owners = fit(world)
    # Two domains, and of each: queries, documents, pairs.
    assert [list(found) for found in seen] == [["query", "document"], ["pair"]] * 2
    assert owners.tolist() == [0, 1] * 6
    kinds = [states for found in seen for states in found.values()]
    expected = torch.stack([states[start::2].mean(0) for states in kinds for start in (0, 1)])
    assert torch.allclose(vectors, F.normalize(expected, dim=-1), atol=1e-6)


def test_the_loss_of_an_expert_is_that_of_the_query_in_its_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the queries is what training minimises, with all texts given to that expert."""
    spec, model, _, _ = world
    found: list[tuple[Any, str, Tensor]] = []
    real = pilots.query_losses

    def losses(model: Any, batch: Any, expert: str, settings: Any) -> Tensor:
        found.append((batch, expert, real(model, batch, expert, settings)))
        return found[-1][2]

    monkeypatch.setattr(pilots, "query_losses", losses)
    fit(world)
    assert len(found) == 2 * 2 * 2
    for batch, expert, loss in found:
        assert loss.shape == (10,)
        forced = {"embedding": 0, "reranking": 1}[expert]
        model.pilots.fit(torch.ones(1, 32), torch.tensor([forced]))
        # At inference, the single pilot sends every text to its owner.
        with torch.no_grad():
            expected, _ = compute_loss(model, batch, spec.training)
        assert loss.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_fitting_is_repeatable_and_changes_nothing_but_the_pilots(world: World) -> None:
    _, model, _, _ = world
    before = {name: tensor.clone() for name, tensor in model.state().items() if not name.startswith("pilots.")}
    first = fit(world)
    torch.rand(3)
    again = fit(world)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    vectors, owners = first
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-6)
    assert set(owners.tolist()) <= {0, 1}
    # The random experts differ by text, so both have won something.
    assert len(set(owners.tolist())) == 2
    assert 6 <= len(vectors) <= 12
    assert all(torch.equal(model.state()[name], tensor) for name, tensor in before.items())
    clear_pilots(model)
    assert len(model.pilots.owners) == 0


def test_pilots_come_from_the_examples_that_every_arm_trains_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of each domain; a domain that has fewer gives all that it has."""
    spec, model, collator, domains = world
    given: list[set[str]] = []
    real = pilots.TaskSampler

    def sampler(task: Any, examples: Any, *rest: Any) -> Any:
        given.extend({example.query_id for example in found} for found in examples.values())
        return real(task, examples, *rest)

    monkeypatch.setattr(pilots, "TaskSampler", sampler)
    domains = {
        name: replace(domain, examples=domain.examples[:count])
        for (name, domain), count in zip(domains.items(), (30, 6), strict=True)
    }
    fit_pilots(model, domains, collator, spec)
    expected = [{example.query_id for example in domain.examples[-10:]} for domain in domains.values()]
    assert [len(found) for found in expected] == [10, 6]
    assert given == [expected[0], expected[0], expected[1], expected[1]]
