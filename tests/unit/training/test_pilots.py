"""Pilots are made of examples that no expert was trained on, and belong to the expert that did best on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.config import ExperimentConfig
from unimoer.data.collate import Collator
from unimoer.data.prepare import training_examples
from unimoer.errors import UserError
from unimoer.model.unified import UnifiedModel
from unimoer.training import pilots
from unimoer.training.objectives import compute_loss
from unimoer.training.pilots import fit_pilots, hold_out
from unimoer.types import Example

Make = Callable[..., dict[str, Any]]


def examples(count: int) -> tuple[Example, ...]:
    return tuple(Example("garden", f"q{number}", "query", ("d",), ()) for number in range(count))


def test_the_last_examples_of_every_domain_are_kept() -> None:
    given = {"garden": examples(10), "kitchen": examples(8)}
    kept, held = hold_out(given, 4)
    for domain, found in given.items():
        assert kept[domain] + held[domain] == found
        assert len(held[domain]) == 4


def test_a_domain_that_has_too_few_says_so() -> None:
    with pytest.raises(UserError, match=r"data\.domains\.kitchen: 7 training queries .* router\.pilot_queries"):
        hold_out({"garden": examples(8), "kitchen": examples(7)}, 4)


@pytest.fixture
def world(experiment: Make, base: Path) -> tuple[ExperimentConfig, UnifiedModel, Collator, dict[str, Any]]:
    """A model with two different experts, and ten examples of each domain."""
    config = tiny.parsed(experiment(training__embedding__negatives=1))
    shared = tiny.context(config)
    adapter = {"rank": 4, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": "similarity"}}
    model = tiny.build(base, noise=0.2, adapter=adapter)
    datasets = {name: domain.dataset for name, domain in shared.domains.items()}
    collator = Collator(model.prompter, datasets, instructions=shared.instructions, padding="right", multiple=1)
    return config, model, collator, hold_out(training_examples(shared.domains), 10)[1]


def fit(world: tuple[Any, ...], seed: int = 1) -> tuple[Tensor, Tensor]:
    config, model, collator, held = world
    fit_pilots(model, held, collator, config.training, seed)
    return model.pilots.vectors.clone(), model.pilots.owners.clone()


def test_a_pilot_is_the_mean_of_the_texts_that_its_expert_won(
    world: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expert 0 is made to win the even queries and expert 1 the odd ones, on both tasks and domains."""
    seen: list[dict[str, Tensor]] = []
    real = pilots._texts

    def losses(model: Any, batch: Any, expert: str, config: Any) -> Tensor:
        return (torch.arange(10) % 2 == (expert == "embedding")).float()

    def texts(model: Any, batch: Any) -> dict[str, Tensor]:
        seen.append(real(model, batch))
        return seen[-1]

    monkeypatch.setattr(pilots, "_losses", losses)
    monkeypatch.setattr(pilots, "_texts", texts)
    vectors, owners = fit(world)
    # Two domains, and of each: queries, documents, pairs.
    assert [list(found) for found in seen] == [["query", "document"], ["pair"]] * 2
    assert owners.tolist() == [0, 1] * 6
    kinds = [states for found in seen for states in found.values()]
    expected = torch.stack([states[start::2].mean(0) for states in kinds for start in (0, 1)])
    assert torch.allclose(vectors, F.normalize(expected, dim=-1), atol=1e-6)


def test_the_loss_of_an_expert_is_that_of_the_query_in_its_batch(
    world: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over the queries is what training minimises, with all texts given to that expert."""
    config, model, _, _ = world
    found: list[tuple[Any, str, Tensor]] = []
    real = pilots._losses

    def losses(model: Any, batch: Any, expert: str, settings: Any) -> Tensor:
        found.append((batch, expert, real(model, batch, expert, settings)))
        return found[-1][2]

    monkeypatch.setattr(pilots, "_losses", losses)
    fit(world)
    assert len(found) == 2 * 2 * 2
    for batch, expert, loss in found:
        assert loss.shape == (10,)
        forced = {"embedding": 0, "reranking": 1}[expert]
        model.pilots.fit(torch.ones(1, 32), torch.tensor([forced]))
        # At inference, the single pilot sends every text to its owner.
        with torch.no_grad():
            expected, _ = compute_loss(model, batch, config.training)
        assert loss.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_fitting_is_repeatable_and_changes_nothing_but_the_pilots(world: tuple[Any, ...]) -> None:
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
