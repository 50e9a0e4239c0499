"""Reranking scores the candidates it is given, all of them and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from unimoer.config import CollectionConfig
from unimoer.evaluation.evaluate import System, rank
from unimoer.evaluation.rerank import cut, rerank
from unimoer.evaluation.suites import Collection
from unimoer.types import Document, RetrievalDataset, Task

CORPUS = {"a": Document("the red kettle"), "b": Document("a pond", "garden"), "c": Document("the old fence")}
QUERIES = {"q1": "red kettle", "q2": "where is the pond", "q3": "nothing"}
DATASET = RetrievalDataset("toy", CORPUS, QUERIES, {})
CANDIDATES = {"q1": {"a": 3.0, "c": 1.0}, "q2": {"b": 2.0, "a": 1.0, "c": 0.5}, "q3": {}}


def test_cut_takes_the_best_and_breaks_ties_by_id() -> None:
    run = {"q": {"d3": 1.0, "d1": 1.0, "d2": 5.0, "d4": 1.0}, "empty": {}}
    assert cut(run, 3) == {"q": {"d2": 5.0, "d1": 1.0, "d3": 1.0}, "empty": {}}
    assert list(cut(run, 3)["q"]) == ["d2", "d1", "d3"]
    assert cut(run, 100)["q"] == run["q"]


def test_every_candidate_gets_the_score_of_its_own_prompt(base: Path) -> None:
    model = tiny.build(base, noise=0.1)
    run = rerank(model, DATASET, QUERIES, CANDIDATES)
    assert {query: set(scores) for query, scores in run.items()} == {"q1": set("ac"), "q2": set("abc"), "q3": set()}
    for query, scores in run.items():
        for document, found in scores.items():
            ids = model.prompter.pairs([QUERIES[query]], [CORPUS[document].content])
            with torch.inference_mode():
                assert found == pytest.approx(float(model.score(tiny.batch(ids))), abs=1e-4)


def test_queries_without_candidates_stay_in_the_run(base: Path) -> None:
    model = tiny.build(base)
    assert rerank(model, DATASET, QUERIES, {}) == {"q1": {}, "q2": {}, "q3": {}}


def test_every_arm_ranks_the_same_list(base: Path) -> None:
    """Two models, BM25 and a random order, the depth applied by BM25's order and not by the model's."""
    collection = Collection("toy", CollectionConfig(source="toy"), "test", DATASET, {q: {"a": 1} for q in QUERIES})
    systems: list[System] = ["bm25", tiny.build(base), tiny.build(base, noise=0.3, seed=5), "random"]
    runs = [rank(system, collection, CANDIDATES, Task.RERANKING, depth=2) for system in systems]
    for run in runs:
        assert {query: set(scores) for query, scores in run.items()} == {"q1": set("ac"), "q2": set("ab"), "q3": set()}
    assert runs[0]["q2"] == {"b": 2.0, "a": 1.0}
    assert rank("bm25", collection, CANDIDATES, Task.EMBEDDING, depth=2) == CANDIDATES
