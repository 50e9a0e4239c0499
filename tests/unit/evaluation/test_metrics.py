"""Metrics against an independent plain-Python reference, and the choices that trec_eval leaves open."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimoer.errors import UserError
from unimoer.evaluation.metrics import METRICS, ceiling, drop_identical, evaluate_run, mean

DOCUMENTS = [f"d{number}" for number in range(30)] + ["é", "Z", "_"]

judgements = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), max_size=12)
# Few distinct scores, two of them equal only in float32, so that ties are common.
scores = st.sampled_from([0.0, 0.5, 1.0, 1.0 + 1e-12, -2.0, 1e-3, 7.25])
rankings = st.dictionaries(st.sampled_from(DOCUMENTS), scores, max_size=len(DOCUMENTS))
queries = st.sampled_from([f"q{number}" for number in range(5)])


def order(documents: dict[str, float]) -> list[str]:
    return sorted(documents, key=lambda name: (np.float32(documents[name]), name.encode()), reverse=True)


def reference(grades: dict[str, int], documents: dict[str, float]) -> dict[str, float]:
    """The four metrics of one query from their definitions."""
    ranked = order(documents)
    positives = {name for name, grade in grades.items() if grade > 0}
    gains = [max(grades.get(name, 0), 0) for name in ranked]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(rank + 2) for rank, value in enumerate(values[:10]))

    hits, precisions = 0, 0.0
    for rank, name in enumerate(ranked, start=1):
        if name in positives:
            hits += 1
            precisions += hits / rank
    first = next((rank for rank, name in enumerate(ranked[:10], start=1) if name in positives), None)
    return {
        "ndcg@10": dcg(gains) / dcg(ideal),
        "map": precisions / len(positives),
        "mrr@10": 1 / first if first else 0.0,
        "recall@100": len(positives & set(ranked[:100])) / len(positives),
    }


@settings(max_examples=300, deadline=None)
@given(
    qrels=st.dictionaries(queries, judgements, max_size=5),
    run=st.dictionaries(queries, rankings, max_size=5),
)
def test_equals_the_definitions(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> None:
    found = evaluate_run(qrels, run)
    assert set(found) == {query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    for query, values in found.items():
        assert tuple(values) == METRICS
        assert values == pytest.approx(reference(qrels[query], run.get(query, {})), abs=1e-12)


def test_long_rankings_and_every_mrr_rank() -> None:
    names = [f"{number:04d}" for number in range(300)]
    generator = random.Random(0)
    for position in range(1, 14):
        documents = {name: float(-rank) for rank, name in enumerate(names, start=1)}
        grades = {names[position - 1]: 1}
        assert evaluate_run({"q": grades}, {"q": documents})["q"]["mrr@10"] == (
            pytest.approx(1 / position) if position <= 10 else 0.0
        )
    for _ in range(20):
        documents = {name: generator.choice([0.1, 0.2, generator.random()]) for name in names}
        grades = {name: generator.randint(0, 3) for name in generator.sample(names, 150)}
        found = evaluate_run({"q": grades}, {"q": documents})["q"]
        assert found == pytest.approx(reference(grades, documents), abs=1e-12)


def test_missing_query_counts_as_zero_and_unjudged_query_not_at_all() -> None:
    qrels = {"found": {"a": 1}, "lost": {"a": 1}, "hopeless": {"a": 0}}
    found = evaluate_run(qrels, {"found": {"a": 1.0}, "hopeless": {"a": 1.0}, "unknown": {"a": 1.0}})
    assert found["lost"] == dict.fromkeys(METRICS, 0.0)
    assert set(found) == {"found", "lost"}
    assert mean(found)["ndcg@10"] == 0.5
    assert mean({}) == {}
    assert evaluate_run({}, {}) == {}


def test_ties_go_to_the_greater_document_id() -> None:
    run = {"q": {"a": 1.0, "b": 1.0 + 1e-12}}
    assert evaluate_run({"q": {"a": 1}}, run)["q"]["mrr@10"] == 0.5
    assert evaluate_run({"q": {"b": 1}}, run)["q"]["mrr@10"] == 1.0
    assert evaluate_run({"q": {"a": 1}}, {"q": {"b": 1.0, "a": 1.0 + 1e-12}})["q"]["mrr@10"] == 0.5


def test_numpy_scores_other_cuts_and_bad_input() -> None:
    run = {"q": {"a": np.float32(2.0), "b": 1}}
    assert evaluate_run({"q": {"b": 1}}, run, ("ndcg@1", "mrr@1", "mrr@2", "recall@2")) == {
        "q": {"ndcg@1": 0.0, "mrr@1": 0.0, "mrr@2": 0.5, "recall@2": 1.0}
    }
    with pytest.raises(UserError, match="did you mean 'ndcg@10'"):
        evaluate_run({"q": {"b": 1}}, run, ("ndgc@10",))
    with pytest.raises(ValueError, match=r"'q'.*'a'.*nan"):
        evaluate_run({"q": {"b": 1}}, {"q": {"a": float("nan")}})


@settings(max_examples=100, deadline=None)
@given(
    qrels=st.dictionaries(queries, judgements, min_size=1, max_size=5),
    run=st.dictionaries(queries, rankings, max_size=5),
)
def test_ceiling_bounds_every_order_of_the_candidates(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> None:
    best = ceiling(qrels, run)
    reached = mean(evaluate_run(qrels, run))
    assert best["ndcg@10"] >= reached.get("ndcg@10", 0.0) - 1e-12
    assert best["recall"] == pytest.approx(reached.get("recall@100", 0.0), abs=1e-12)
    assert ceiling(qrels, {query: list(documents) for query, documents in run.items()}) == best


def test_ceiling_by_hand() -> None:
    qrels = {"one": {"a": 2, "b": 1}, "two": {"a": 1}, "none": {"a": 0}}
    best = ceiling(qrels, {"one": ["x", "b"], "none": ["a"]})
    assert best["recall"] == 0.25
    assert best["ndcg@10"] == pytest.approx(0.5 * 1 / (2 + 1 / math.log2(3)))


def test_a_query_that_is_a_document_does_not_compete_with_its_answers() -> None:
    run = {"a": {"a": 9.0, "b": 2.0, "c": 1.0}, "b": {"c": 1.0, "a": 0.5}, "c": {"c": 1.0}}
    qrels = {"a": {"b": 1}, "b": {"c": 1}, "c": {"a": 1}}
    before = {query: dict(documents) for query, documents in run.items()}
    dropped = drop_identical(run)
    assert dropped == {"a": {"b": 2.0, "c": 1.0}, "b": {"c": 1.0, "a": 0.5}, "c": {}}
    assert run == before
    assert {query: values["mrr@10"] for query, values in evaluate_run(qrels, run).items()} == {"a": 0.5, "b": 1, "c": 0}
    assert {query: values["mrr@10"] for query, values in evaluate_run(qrels, dropped).items()} == {
        "a": 1,
        "b": 1,
        "c": 0,
    }
