"""From answers to a table: every number by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from unimoer.rag import summary
from unimoer.rag.table import report
from unimoer.schema import Environment, RagAnswer, RagCosts, RagPlan, RagResults
from unimoer.schema.rag import RagAsked

ONE = [0.2, 0.4, 0.9, 0.1]
TWO = [0.1, 0.4, 0.5, 0.3]


def answers(scores: list[float], **more: Any) -> list[RagAnswer]:
    content = {"answer": "", "exact_match": 0.0, "contains": 0.0, "answer_recall": None, "passage_recall": None}
    content |= {"passages": [], "milliseconds": {"generate": 4.0}} | more
    return [RagAnswer(id=str(number), f1=score, **content) for number, score in enumerate(scores)]


COSTS = RagCosts(
    models={"generator": "base"},
    weights_mb=1.0,
    runtime_mb=2.0,
    loaded_mb=3.0,
    peak_mb=4000.0,
    questions=2,
    asked="a",
    threads=1,
    environment=Environment(),
)


def test_means_have_student_t_intervals_over_questions() -> None:
    cell = summary._system({"a": answers(ONE)}, COSTS).sets["a"].measures["f1"]
    expected = stats.t.interval(0.95, len(ONE) - 1, np.mean(ONE), stats.sem(ONE))
    assert cell.mean == pytest.approx(0.4)
    assert cell.ci95 == pytest.approx(expected, abs=1e-6)


def test_scores_that_are_all_the_same_have_no_interval() -> None:
    system = summary._system({"a": answers(ONE), "b": answers([0.5])}, COSTS)
    assert system.sets["a"].measures["exact_match"].model_dump(include={"mean", "ci95"}) == {
        "mean": 0.0,
        "ci95": (None, None),
    }
    # Of a single question nothing is known but its score.
    assert system.sets["b"].measures["f1"].ci95 == (None, None)
    assert system.macro.measures["f1"].mean == pytest.approx(0.45) and system.macro.questions == 5


def test_a_measure_is_of_the_questions_that_have_it() -> None:
    mixed = [
        *answers([0.0], answer_recall=1.0),
        *answers([0.0, 0.0], answer_recall=None),
        *answers([0.0], answer_recall=0.0),
    ]
    system = summary._system({"a": mixed, "b": answers(ONE)}, COSTS)
    assert system.sets["a"].measures["answer_recall"].mean == 0.5
    assert "answer_recall" not in system.sets["b"].measures
    # An average over sets is of all sets or of none.
    assert system.macro.measures.keys() == {"exact_match", "f1", "contains"}


def test_differences_are_paired_by_question() -> None:
    found = summary._difference(
        {"x": {"a": answers(ONE), "b": answers(TWO)}, "y": {"a": answers(TWO), "b": answers(ONE)}}, "x", "y"
    )
    paired = np.subtract(ONE, TWO)
    expected = stats.t.interval(0.95, len(ONE) - 1, paired.mean(), stats.sem(paired))
    assert found.sets["a"]["f1"].mean == pytest.approx(0.075)
    assert found.sets["a"]["f1"].ci95 == pytest.approx(expected, abs=1e-6)
    assert found.sets["b"]["f1"].mean == pytest.approx(-0.075) and found.macro["f1"].mean == pytest.approx(0.0)
    # Narrower than what two unpaired means would give.
    apart = np.hypot(stats.sem(ONE), stats.sem(TWO))
    assert stats.sem(paired) < apart


def test_a_closed_book_is_not_compared_where_it_has_nothing() -> None:
    found = summary._difference({"x": {"a": answers(ONE, answer_recall=1.0)}, "y": {"a": answers(TWO)}}, "x", "y")
    assert found.macro.keys() == {"exact_match", "f1", "contains"}


def test_latencies_of_stages_and_of_the_whole() -> None:
    took = [{"embed": 1.0 * n, "dense": 2.0, "bm25": 1.0, "rerank": 10.0, "generate": 100.0} for n in range(1, 22)]
    found = summary._latencies([answers([0.0], milliseconds=one)[0] for one in took])
    assert (found["embed"].median, found["embed"].p95) == (11.0, 20.0)
    assert found["retrieve"].median == 14.0 and found["total"].median == 124.0
    assert summary._latencies(answers(ONE)).keys() == {"generate", "total"}


def results() -> RagResults:
    plan = RagPlan(
        config={"retrieval": {"retrieve": "fused", "rerank": 5, "passages": 3}},
        device="cpu",
        asked={name: RagAsked(questions=4, passages=1000, fingerprint="") for name in ("a", "b")},
    )
    took = {"embed": 1.0, "dense": 2.0, "rerank": 3.0, "generate": 1234.0}
    found = {
        "unified": {name: answers(ONE, answer_recall=1.0, milliseconds=took) for name in ("a", "b")},
        "no_retrieval": {name: answers(TWO) for name in ("a", "b")},
    }
    return RagResults(
        name="rag",
        command="unimoer run rag",
        plan=plan,
        systems={key: summary._system(own, COSTS) for key, own in found.items()},  # type: ignore[arg-type]
        differences=[summary._difference(found, "unified", "no_retrieval")],
    )


def test_the_page_shows_all_of_it() -> None:
    page = report(results())
    lines = page.splitlines()
    assert lines[0] == "# rag: retrieval-augmented generation" and "`unimoer run rag`" in page
    assert (
        "Questions: a (4 of 1,000 passages), b (4 of 1,000 passages). Search: fused, the best 5 reranked, 3 read."
        in page
    )
    assert "| system | exact match | F1 | answer in the output | answer in the passages |" in lines
    assert any(line.startswith("| no retrieval | 0.000 | 0.325 [") and line.endswith(" | – |") for line in lines)
    assert any(line.startswith("| unified − no retrieval | 0.000 | +0.075 [") for line in lines)
    assert "| a | unified | 1 (1) | 3 (3) | 3 (3) | 1,234 (1,234) | 1,240 (1,240) |" in lines
    assert "| b | no retrieval | – | – | – | 4 (4) | 4 (4) |" in lines
    assert "| unified | 1 | 2 | 3 | 4,000 |" in lines
    # Every table is whole.
    for line in lines:
        assert not line.startswith("|") or line.endswith("|")
