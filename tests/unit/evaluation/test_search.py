"""Exact search against sorting everything, with the corpus in pieces of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from unimoer.errors import UserError
from unimoer.evaluation import search as module
from unimoer.evaluation.search import search, top_k
from unimoer.model import inference
from unimoer.types import Document, RetrievalDataset


def vectors(rows: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [1, 7, 10, 50, 65_536])
@pytest.mark.parametrize("k", [1, 10, 49, 50, 200])
@pytest.mark.parametrize("scores", [1, 30, 1 << 24])
def test_top_k_is_exact_whatever_the_chunks(chunk: int, k: int, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "SCORES", scores)
    queries, documents = vectors(4, 0), vectors(50, 1)
    names = [f"d{number}" for number in range(50)]
    found = top_k(queries, documents, [f"q{number}" for number in range(4)], names, k)
    scores = queries @ documents.T
    for row, (query, ranked) in enumerate(found.items()):
        assert query == f"q{row}"
        best = np.argsort(-scores[row])[:k]
        assert set(ranked) == {names[position] for position in best}
        for position in best:
            assert ranked[names[position]] == pytest.approx(float(scores[row, position]), abs=1e-6)


def test_top_k_of_equal_scores_keeps_k_of_them() -> None:
    documents = np.ones((30, 2), dtype=np.float32)
    found = top_k(np.ones((1, 2), dtype=np.float32), documents, ["q"], [f"d{n}" for n in range(30)], 10)
    assert len(found["q"]) == 10
    assert set(found["q"].values()) == {2.0}


def test_search_ranks_the_whole_corpus_by_cosine(base: Path) -> None:
    model = tiny.build(base, noise=0.1)
    corpus = {"a": Document("the red kettle"), "b": Document("a pond", "garden"), "c": Document("the old fence")}
    queries = {"q1": "the red kettle", "q2": "garden\na pond"}
    run = search(model, RetrievalDataset("toy", corpus, queries, {}), queries)
    assert {query: set(scores) for query, scores in run.items()} == {"q1": set("abc"), "q2": set("abc")}
    # The templates add nothing to a query or a document here, so a text finds itself; title and text are one.
    assert max(run["q1"], key=run["q1"].__getitem__) == "a"
    assert max(run["q2"], key=run["q2"].__getitem__) == "b"
    assert run["q1"]["a"] == pytest.approx(1, abs=1e-5)
    assert len(search(model, RetrievalDataset("toy", corpus, queries, {}), queries, k=2)["q1"]) == 2


def test_the_instruction_reaches_queries(base: Path) -> None:
    prompts = {"query": "{instruction}: {query}", "document": "{document}", "pair": "{query}\n{document}"}
    model = tiny.build(base, noise=0.1, prompts=prompts)
    dataset = RetrievalDataset("toy", {"a": Document("the red kettle")}, {}, {})
    one, other = (search(model, dataset, {"q": "kettle"}, instruction=text) for text in ("find", "never"))
    assert one != other


def test_vectors_in_a_file_give_the_same_ranking_and_are_read_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny.build(base, noise=0.1), tiny.dataset("garden")
    queries = dict(list(data.queries.items())[:6])
    expected = search(model, data, queries, k=5)
    path = tmp_path / "vectors.npy"
    assert search(model, data, queries, k=5, vectors=path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(inference, "encode", None)
        assert search(model, data, queries, k=5, vectors=path) == expected
    with pytest.raises(UserError, match="another model, corpus"):
        search(model, data, queries, k=5, vectors=path, instruction="other")
    shuffled = replace(data, corpus=dict(reversed(data.corpus.items())))
    assert shuffled.fingerprint == data.fingerprint
    with pytest.raises(UserError, match="another model, corpus"):
        search(model, shuffled, queries, k=5, vectors=path)


def test_a_large_corpus_goes_through_a_file_that_only_a_kill_leaves(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny.build(base, noise=0.1), tiny.dataset("garden")
    queries = dict(list(data.queries.items())[:6])
    expected = search(model, data, queries, k=5)
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "LARGE", 30)
    monkeypatch.setattr(inference, "WINDOW", 8)
    with monkeypatch.context() as patch:
        patch.setattr(module, "top_k", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search(model, data, queries, k=5)
    assert len(list((tmp_path / "vectors").iterdir())) == 2
    assert search(model, data, queries, k=5).keys() == expected.keys()
    found = search(model, data, queries, k=5)
    for query, scores in expected.items():
        assert found[query] == pytest.approx(scores, abs=1e-6)
    assert list((tmp_path / "vectors").iterdir()) == []
