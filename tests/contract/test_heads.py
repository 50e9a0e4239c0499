"""What every score head promises; a new one in `HEADS` is covered as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import tiny
from unimoer.config import BCEConfig, GroupSoftmaxConfig, ListwiseConfig, TrainingConfig
from unimoer.config.heads import HEADS, HeadName, check_loss
from unimoer.config.training import RankingLossConfig
from unimoer.data.collate import Collator
from unimoer.data.sampling import Sample
from unimoer.errors import UserError
from unimoer.model import head_table
from unimoer.model.checkpoint import load_model, save_model
from unimoer.model.export import check_pairs
from unimoer.model.routing import RoutingTrace
from unimoer.model.scoring import score_candidates
from unimoer.model.unified import UnifiedModel
from unimoer.training.objectives import compute_loss
from unimoer.types import Example, Task

PROMPTS = {**tiny.PROMPTS, "candidates": "{query}{mark}\n{candidates}{query}{mark}", "candidate": "{document}{mark}\n"}
QUERIES = ["where is the red kettle", "find my pond", "a bench"]
CANDIDATES = [["the red kettle is old", "a pond"], [], ["a bench stands here", "a fence", "an oven"]]
LOSSES: tuple[type[Any], ...] = get_args(get_args(RankingLossConfig)[0])
every = pytest.mark.parametrize("name", list(HEADS))


def build(base: Path, name: HeadName, **changes: Any) -> UnifiedModel:
    pooling = "mean" if HEADS[name].two_parts else "last"
    settings: dict[str, Any] = {"reranking": {"pooling": pooling, "head": name}, "embedding": {"pooling": "last"}}
    pair = {"pair": "<|im_start|>{query}<|im_end|>{document}"} if HEADS[name].two_parts else {}
    return tiny.build(base, prompts=PROMPTS | pair, **settings, **changes)


def test_every_kind_has_a_class_and_every_name_a_kind() -> None:
    assert set(get_args(HeadName)) == HEADS.keys() == head_table.HEADS.keys()


@every
def test_its_kind_says_what_it_is(name: HeadName, base: Path) -> None:
    model, kind = build(base, name), HEADS[name]
    assert bool(list(model.head.parameters())) == kind.learned
    same, other = build(base, name), build(base, name, seed=5)
    assert all(torch.equal(one, two) for one, two in zip(model.head.parameters(), same.head.parameters(), strict=True))
    assert (kind.learned and kind.random_start) == any(
        not torch.equal(one, two) for one, two in zip(model.head.parameters(), other.head.parameters(), strict=True)
    )
    scores = score_candidates(model, QUERIES, CANDIDATES)
    assert [len(group) for group in scores] == [2, 0, 3]
    assert not kind.cosine or all(abs(score) <= 1 + 1e-5 for group in scores for score in group)
    assert (head_table.HEADS[name].recipe is None) == kind.reads_lists
    if kind.reads_lists:
        with pytest.raises(UserError, match=f"head '{name}' reads .*, which no other format says"):
            check_pairs(model.config, [Task.RERANKING])
    else:
        check_pairs(model.config, [Task.RERANKING])
    if not kind.reads_lists:
        # Of a pair alone, whatever stands beside it.
        [[alone]] = score_candidates(model, QUERIES[:1], [CANDIDATES[0][1:]])
        assert float(alone) == pytest.approx(float(scores[0][1]), abs=1e-4)


@every
@pytest.mark.parametrize("loss", [loss() for loss in LOSSES], ids=lambda loss: loss.type)
def test_a_loss_trains_it_or_is_refused(name: HeadName, loss: Any, base: Path) -> None:
    """Refused by one line; otherwise with a finite gradient that reaches the experts and all of the head."""
    kind = HEADS[name]
    fits = not (kind.cosine and isinstance(loss, BCEConfig | GroupSoftmaxConfig))
    fits &= not isinstance(loss, ListwiseConfig) or kind.own_loss == loss.type
    if not fits:
        with pytest.raises(ValueError, match=r"^training\.reranking\.loss: "):
            check_loss(name, loss)
        return
    check_loss(name, loss)
    model, data = build(base, name, noise=0.05).train(), tiny.dataset("kitchen")
    options: Any = {"instructions": {"kitchen": None}, "padding": "right", "multiple": 1, "head": name}
    collator = Collator(model.prompter, {"kitchen": data}, **options)
    samples = [
        Sample(Example("kitchen", f"q{number}", QUERIES[0], (f"d{number}",), ()), f"d{number}", ("d8", "d9"))
        for number in range(2)
    ]
    batch = collator.reranking("kitchen", samples)
    found = model.head.score_batch(model, batch, RoutingTrace())
    assert found.scores.shape == (2, 3)
    assert (found.vectors is not None) == bool(kind.own_loss)
    training = {"embedding": {"steps": 1}, "reranking": {"steps": 1, "loss": loss}}
    value, _ = compute_loss(model, batch, TrainingConfig.model_validate(training))
    value.backward()
    gradients = {key: parameter.grad for key, parameter in model.trainable().items()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    for key, gradient in gradients.items():
        # What is added to all scores alike, no loss of their differences sees.
        assert not key.startswith("head.") or key.endswith("bias") or gradient.any(), key


@every
def test_a_checkpoint_gives_what_was_saved(name: HeadName, base: Path, tmp_path: Path) -> None:
    model = build(base, name, noise=0.05)
    save_model(model, tmp_path / "final")
    loaded = load_model(tmp_path / "final", tiny.CPU)
    for found, expected in zip(*(score_candidates(one, QUERIES, CANDIDATES) for one in (loaded, model)), strict=True):
        assert found.tolist() == expected.tolist()
