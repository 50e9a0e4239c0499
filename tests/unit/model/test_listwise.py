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
from unimoer.model.inference import score_lists
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


def cosines(model: UnifiedModel, documents: list[str] = DOCUMENTS, **options: Any) -> Tensor:
    [found] = score_lists(model, [QUERY], [documents], **options)
    return torch.from_numpy(found)


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
    assert tiny.relative(cosines(model), expected[1:-1] @ expected[-1]) < 1e-4


def test_prompts_of_a_long_list_share_one_query(base: Path) -> None:
    """Each prompt's query counts by half of one more than its best cosine."""
    model = build(base, "listwise", list_size=3)
    blocks = [vectors(model, DOCUMENTS[:3]), vectors(model, DOCUMENTS[3:])]
    weights = [(1 + float((block[1:-1] @ block[-1]).max())) / 2 for block in blocks]
    query = F.normalize(weights[0] * blocks[0][-1] + weights[1] * blocks[1][-1], dim=0)
    expected = torch.cat([block[1:-1] for block in blocks]) @ query
    assert tiny.relative(cosines(model), expected) < 1e-4


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_feedback_puts_the_first_candidates_into_the_query_and_compares_all(family: str, bases: Bases) -> None:
    model = build(bases(family), "cosine", list_size=2)
    ids, marks = model.prompter.lists([QUERY], [DOCUMENTS[:2]], marked=False)
    assert marks == [[]]
    with torch.inference_mode():
        query = model.embed_feedback(tiny.batch(ids))[0]
        documents = model.embed(tiny.batch(model.prompter.documents(DOCUMENTS)))
    assert tiny.relative(cosines(model), documents @ query) < 1e-4
    assert tiny.relative(cosines(model, batch_tokens=1), documents @ query) < 1e-4
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
    expected = cosines(model, [DOCUMENTS[i] for i in (0, 1, 2)])
    assert run == {"q": pytest.approx(dict(zip("012", expected.tolist(), strict=True)), abs=1e-6), "none": {}}
    assert seen[-1] == (3, 3)
    assert rerank(model, dataset, queries, {}) == {"q": {}, "none": {}}


@pytest.mark.parametrize("head", ["listwise", "cosine"])
def test_single_pairs_are_refused(head: str, base: Path) -> None:
    with pytest.raises(UserError, match=f"'{head}' scores a query's candidates together, not single pairs"):
        build(base, head).score(tiny.batch([[3, 4]]))


@pytest.mark.parametrize("head", ["listwise", "cosine"])
def test_a_round_trip_keeps_the_scores(head: str, base: Path, tmp_path: Path) -> None:
    model = build(base, head, list_size=3, padding="left")
    save_model(model, tmp_path / "final")
    loaded = load_model(tmp_path / "final", tiny.CPU)
    expected = cosines(model)
    assert torch.equal(cosines(loaded), expected)


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


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("head", ["listwise", "cosine"])
@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gemma"])
def test_queries_of_one_batch_do_not_meet(family: str, head: str, padding: str, bases: Bases) -> None:
    """Prompts of very different lengths, of several marks, and long enough together to be packed."""
    model = build(bases(family), head, list_size=3, padding=padding)
    queries = [QUERY, "find my bench", "a pond", "tell me about the golden oven", "x", "who owns the fence", "spoon"]
    candidates = [(DOCUMENTS * 2)[: number + 1] for number in range(6)] + [[]]
    together = score_lists(model, queries, candidates)
    for query, texts, found in zip(queries, candidates, together, strict=True):
        [alone] = score_lists(model, [query], [texts], batch_tokens=1)
        assert found.shape == (len(texts),)
        assert found == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma"])
def test_recomputation_gives_the_same_gradients(family: str, bases: Bases) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(bases(family), "listwise", gradient_checkpointing=checkpointing).train()
        ids, marks = model.prompter.lists([QUERY], [DOCUMENTS])
        prompts = tiny.batch(ids)
        vectors = model.list_vectors(prompts, place_marks(marks, prompts))
        (vectors[:, 1:-1] @ vectors[0, -1]).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.trainable().items()})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        assert tiny.relative(found[1][name], gradient) < 1e-5, name


@pytest.mark.parametrize(("head", "wanted"), [("listwise", {"reranking"}), ("cosine", {"embedding", "reranking"})])
@pytest.mark.parametrize("router", ["hard", "hard_shared", "softmax"])
def test_routed_experts_know_which_task_a_list_is_of(router: str, head: str, wanted: set[str], base: Path) -> None:
    """The prompt is one of reranking, and so, with `listwise`, are its documents; with `cosine` they are embedded."""
    experts = {"embedding": 2, "reranking": 2, "shared": 2}
    model = build(base, head, adapter={"rank": 6, "alpha": 12.0, "experts": experts, "router": {"type": router}})
    tasks: set[str] = set()
    for layer in model.decoder.layers:
        for module in layer.routers.values():
            module.register_forward_hook(lambda _, given, __: tasks.add(given[1].task.value))
    cosines(model)
    assert tasks == wanted


def test_a_prompt_longer_than_the_base_reads_is_refused(base: Path) -> None:
    prompts = {**PROMPTS, "max_document_tokens": 600}
    reranking = {"pooling": "mean", "head": "listwise", "list_size": 4}
    message = r"list_size: a prompt of 4 candidates can have 2,\d\d\d tokens, .* reads 2,048; lower it"
    with pytest.raises(UserError, match=message):
        tiny.build(base, reranking=reranking, prompts=prompts)


def test_marks_are_as_large_as_the_words_that_the_layers_see(bases: Bases) -> None:
    """Gemma multiplies what is in its table by the root of its width."""
    for family in ("qwen3", "gemma"):
        model = build(bases(family), "listwise")
        body = getattr(model.decoder, "body", None)
        ids = torch.arange(300)
        table = model.decoder.embedding[ids] if body is None else body.get_input_embeddings()(ids)
        ratio = model.head.marks.detach().norm(dim=-1).mean() / table.detach().float().norm(dim=-1).mean()
        assert 0.5 < float(ratio) < 2, family
