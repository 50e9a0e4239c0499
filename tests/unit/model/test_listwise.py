"""Heads that read a query with all its candidates: what each vector has seen, and how long lists are split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.data.collate import place_marks
from unimoer.errors import UserError
from unimoer.evaluation.rerank import rerank
from unimoer.model.checkpoint import load_model, save_model
from unimoer.model.listwise import score_candidates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Document, RetrievalDataset

Bases = Callable[[str], Path]
QUERY = "where is the red kettle"
DOCUMENTS = ["the red kettle is old", "a pond", "the kettle stands near the window of the kitchen", "a blue fence"]
PROMPTS = {**tiny.PROMPTS, "candidates": "{query}{mark}\n{candidates}{query}{mark}", "candidate": "{document}{mark}\n"}


def build(folder: Path, head: str, *, list_size: int = 20, **changes: Any) -> UnifiedModel:
    reranking = {"pooling": "mean", "head": head, "list_size": list_size}
    return tiny.build(folder, noise=0.1, reranking=reranking, prompts=PROMPTS, **changes)


def vectors(model: UnifiedModel, documents: list[str], padding: str = "right", multiple: int = 1) -> Tensor:
    ids, marks = model.prompter.lists([QUERY], [documents])
    prompts = tiny.batch(ids, padding, multiple)
    with torch.inference_mode():
        return model.list_vectors(prompts, place_marks(marks, prompts))[0]


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_a_mark_sees_what_stands_before_it_and_nothing_else(family: str, bases: Bases) -> None:
    """The first query no document, a document those before it, the last query all: attention is causal."""
    model = build(bases(family), "listwise")
    found, other = (
        vectors(model, DOCUMENTS),
        vectors(model, [*DOCUMENTS[:2], "a white spoon is very old", DOCUMENTS[3]]),
    )
    same = (found - other).norm(dim=-1) < 1e-5
    assert same.tolist() == [True, True, True, False, False, False]
    assert torch.allclose(found.norm(dim=-1), torch.ones(6), atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_padding_changes_nothing(family: str, bases: Bases) -> None:
    model = build(bases(family), "listwise")
    expected = vectors(model, DOCUMENTS)
    for padding in ("left", "right"):
        assert tiny.relative(vectors(model, DOCUMENTS, padding, 64), expected) < 1e-4


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_the_marks_are_learned_and_are_no_words(family: str, bases: Bases) -> None:
    """Both get a gradient; the token that holds their place makes no difference."""
    model = build(bases(family), "listwise").train()
    ids, marks = model.prompter.lists([QUERY], [DOCUMENTS])
    prompts = tiny.batch(ids)
    places = place_marks(marks, prompts)
    found = model.list_vectors(prompts, places)
    found[:, 1:-1].sum().backward()
    gradient = model.head.marks.grad
    assert (gradient.norm(dim=-1) > 1e-4).all()
    prompts.input_ids[0, places[0]] = 7
    assert torch.equal(model.list_vectors(prompts, places), found)


def test_scores_of_one_prompt_are_cosines_of_its_marks(base: Path) -> None:
    model = build(base, "listwise")
    expected = vectors(model, DOCUMENTS)
    assert tiny.relative(score_candidates(model, QUERY, DOCUMENTS), expected[1:-1] @ expected[-1]) < 1e-4


def test_prompts_of_a_long_list_share_one_query(base: Path) -> None:
    """Each prompt's query counts by half of one more than its best cosine."""
    model = build(base, "listwise", list_size=3)
    blocks = [vectors(model, DOCUMENTS[:3]), vectors(model, DOCUMENTS[3:])]
    weights = [(1 + float((block[1:-1] @ block[-1]).max())) / 2 for block in blocks]
    query = F.normalize(weights[0] * blocks[0][-1] + weights[1] * blocks[1][-1], dim=0)
    expected = torch.cat([block[1:-1] for block in blocks]) @ query
    assert tiny.relative(score_candidates(model, QUERY, DOCUMENTS), expected) < 1e-4


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_feedback_puts_the_first_candidates_into_the_query_and_compares_all(family: str, bases: Bases) -> None:
    model = build(bases(family), "cosine", list_size=2)
    ids, marks = model.prompter.lists([QUERY], [DOCUMENTS[:2]], marked=False)
    assert marks == [[]]
    with torch.inference_mode():
        query = model.embed_feedback(tiny.batch(ids))[0]
        documents = model.embed(tiny.batch(model.prompter.documents(DOCUMENTS)))
    assert tiny.relative(score_candidates(model, QUERY, DOCUMENTS), documents @ query) < 1e-4
    assert tiny.relative(score_candidates(model, QUERY, DOCUMENTS, rows=1), documents @ query) < 1e-4
    assert not [name for name in model.trainable() if name.startswith("head.")]


@pytest.mark.parametrize("head", ["listwise", "cosine"])
def test_reranking_scores_every_candidate(head: str, base: Path) -> None:
    model = build(base, head, list_size=2)
    dataset = RetrievalDataset("toy", {str(i): Document(text) for i, text in enumerate(DOCUMENTS)}, {}, {})
    queries = {"q": QUERY, "none": "a bench"}
    seen: list[tuple[int, int]] = []
    # The prompt's order is that of the first scores.
    candidates = {"q": {"2": 1.0, "0": 3.0, "1": 2.0}}
    run = rerank(model, dataset, queries, candidates, report=lambda done, total: seen.append((done, total)))
    expected = score_candidates(model, QUERY, [DOCUMENTS[i] for i in (0, 1, 2)])
    assert run == {"q": dict(zip("012", expected.tolist(), strict=True)), "none": {}}
    assert seen == [(3, 3)]


@pytest.mark.parametrize("head", ["listwise", "cosine"])
def test_single_pairs_are_refused(head: str, base: Path) -> None:
    with pytest.raises(UserError, match=f"'{head}' scores a query's candidates together, not single pairs"):
        build(base, head).score(tiny.batch([[3, 4]]))


@pytest.mark.parametrize("head", ["listwise", "cosine"])
def test_a_round_trip_keeps_the_scores(head: str, base: Path, tmp_path: Path) -> None:
    model = build(base, head, list_size=3, padding="left")
    save_model(model, tmp_path / "final")
    loaded = load_model(tmp_path / "final", tiny.CPU)
    expected = score_candidates(model, QUERY, DOCUMENTS)
    assert torch.equal(score_candidates(loaded, QUERY, DOCUMENTS), expected)


def test_a_seed_decides_the_head(base: Path) -> None:
    first, again, other = (
        tiny.build(base, seed=seed, reranking={"pooling": "last", "head": "listwise"}) for seed in (1, 1, 2)
    )
    assert torch.equal(first.head.marks, again.head.marks)
    assert not torch.allclose(first.head.marks, other.head.marks)
    # As far from the mean word as a word is: neither zero nor an outlier that drowns the sequence.
    words, marks = first.decoder.embedding.float(), first.head.marks.detach()
    ratio = float((marks - words.mean(0)).norm() / (words - words.mean(0)).norm(dim=-1).mean() / 2**0.5)
    assert 0.6 < ratio < 1.6
