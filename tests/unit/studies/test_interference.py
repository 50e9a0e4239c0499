"""The decision: its rule, what intervals support, its two guards, and that it is a function of the scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from study_folder import losing
from unimoer.errors import UserError
from unimoer.schema import Decision
from unimoer.schema.plan import Criterion
from unimoer.studies.evidence import read_evidence
from unimoer.studies.interference import decide, region, supported, verdict
from unimoer.studies.run import write_results
from unimoer.studies.scores import Scores
from unimoer.types import Task

Write = Callable[..., Path]
CRITERION = Criterion()


def decided(folder: Path) -> Decision:
    return decide(read_evidence(folder))


def test_the_rule_reads_point_estimates() -> None:
    assert verdict(CRITERION, [2.0, -5.0]) == "PASS"
    assert verdict(CRITERION, [1.99, 0.0]) == "MARGINAL"
    assert verdict(CRITERION, [1.0, 0.0]) == "MARGINAL"
    assert verdict(CRITERION, [0.99, 0.99]) == "FAIL"
    assert verdict(CRITERION, [-3.0, -1.0]) == "FAIL"
    assert verdict(CRITERION, [None, 0.0]) == "MARGINAL"
    assert verdict(CRITERION, [None, 2.5]) == "PASS"


def test_regions_of_an_interval() -> None:
    expected = {
        (2.0, 9.0): "above_pass",
        (-3.0, 0.99): "below_fail",
        (1.0, 1.9): "between",
        (1.5, 2.0): "straddles_pass",
        (0.5, 1.0): "straddles_fail",
        (-1.0, 5.0): "straddles_both",
        (math.nan, math.nan): "undefined",
    }
    assert {bounds: region(CRITERION, *bounds) for bounds in expected} == expected
    assert supported(["above_pass", "straddles_both"]) == "pass"
    assert supported(["below_fail", "below_fail"]) == "fail"
    assert supported(["below_fail", "between"]) == "inconclusive"


@pytest.mark.parametrize(
    ("embedding", "reranking", "rule", "support", "plain"),
    [
        (3.0, 0.5, "PASS", "pass", "sharing costs something"),
        (0.5, 0.9, "FAIL", "fail", "sharing is free"),
        (1.5, 0.5, "MARGINAL", "inconclusive", "not settled"),
        (-4.0, -2.0, "FAIL", "fail", "sharing is free"),
    ],
)
def test_a_decision_of_exact_scores(
    embedding: float, reranking: float, rule: str, support: str, plain: str, write_study: Write
) -> None:
    found = decided(write_study(losing(embedding, reranking)))
    assert (found.verdict, found.supported, found.plain) == (rule, support, plain)
    assert (found.preliminary, found.preliminary_reasons) == (False, [])
    task = found.tasks[Task.EMBEDDING]
    assert task.tir.mean == pytest.approx(embedding)
    assert task.tir.std == pytest.approx(0.0, abs=1e-9)
    assert task.tir.per_seed == {str(seed): pytest.approx(embedding) for seed in (1, 2, 3)}
    assert task.difference.mean == pytest.approx(0.5 * embedding / 100)
    assert task.gain.mean == pytest.approx(0.3)
    assert task.bm25.mean == pytest.approx(0.4)
    assert task.random.mean == pytest.approx(0.05)
    assert task.queries == 120
    assert found.datasets["hpo"][Task.EMBEDDING].tir.mean == pytest.approx(embedding)
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


def test_a_noisy_two_percent_passes_the_rule_and_is_not_settled(write_study: Write) -> None:
    """And the decision says what it would take to find out."""
    found = decided(write_study(losing(2.1, 0.0), noise=0.2, queries=40))
    assert found.verdict == "PASS"
    assert (found.supported, found.plain) == ("inconclusive", "not settled")
    ratio = found.tasks[Task.EMBEDDING].tir
    assert ratio.low is not None and ratio.high is not None and ratio.low < 2.0 < ratio.high
    assert ratio.mde is not None and ratio.mde > 2.0
    assert ratio.needed is not None
    assert ratio.needed.queries is None or ratio.needed.queries > 80


def test_a_guard_for_specialists_that_learned_nothing(write_study: Write) -> None:
    found = decided(write_study(losing(3.0, 3.0, level=0.2)))
    assert [found.tasks[task].status for task in Task] == ["underpowered", "underpowered"]
    assert found.preliminary and len(found.preliminary_reasons) == 2


def test_one_seed_is_preliminary_and_says_so(write_study: Write) -> None:
    found = decided(write_study(losing(3.0, 3.0), seeds=(7,)))
    assert found.preliminary and "1 seed of at least 3" in found.preliminary_reasons[0]
    assert found.tasks[Task.EMBEDDING].tir.std is None
    assert found.method.over == "queries"


@pytest.mark.parametrize(("level", "useful"), [(0.5, True), (0.3, False)])
def test_models_that_lose_to_bm25_are_called_useless(level: float, useful: bool, write_study: Write) -> None:
    """BM25 is at 0.4: a verdict about models that nobody would use has to say so."""
    found = decided(write_study(losing(3.0, 3.0, level=level)))
    assert found.useful is useful
    for task in Task:
        assert found.tasks[task].useful.ok is useful
        assert found.tasks[task].useful.difference.mean == pytest.approx(level - 0.4)
    assert "BM25" in found.tasks[Task.EMBEDDING].useful.claim


def test_a_specialist_that_scores_nothing_has_no_ratio(write_study: Write) -> None:
    folder = write_study(losing(0.0, 0.0))
    scores = Scores.read(folder)
    for key in [key for key in scores.per_query if key.task is Task.RERANKING]:
        scores.per_query[key] = {query: {"ndcg@10": 0.0} for query in scores.per_query[key]}
    scores.write(folder, "ndcg@10")
    found = decided(folder)
    assert found.tasks[Task.RERANKING].tir.mean is None
    assert found.tasks[Task.RERANKING].tir.region == "undefined"
    assert found.verdict == "MARGINAL"


def test_families_are_those_of_the_plan(write_study: Write) -> None:
    """An arm that is added later does not change what a p-value is corrected for."""
    levels = losing(3.0, 1.0)
    found = decided(write_study(levels, noise=0.1))
    assert found.method.families["interference"] == 2
    assert found.method.families["interference by collection"] == 4
    for task in found.tasks.values():
        assert task.p_value is not None and task.p_holm is not None and task.p_bonferroni is not None
        assert task.p_value <= task.p_holm <= task.p_bonferroni


def test_what_is_missing_is_named(write_study: Write) -> None:
    folder = write_study(losing(3.0, 1.0))
    scores = Scores.read(folder)
    for key in [key for key in scores.per_query if (key.arm, key.seed) == ("joint_single", 2)]:
        del scores.per_query[key]
    scores.write(folder, "ndcg@10")
    with pytest.raises(UserError, match="no embedding scores of 'joint_single', seed 2, on 'attack': finish the study"):
        decided(folder)


def test_published_scores_alone_give_the_whole_decision(write_study: Write) -> None:
    """Anybody can compute the intervals again from scores.json.gz and plan.json."""
    folder = write_study(losing(3.0, 1.0), noise=0.1)
    results, decision = write_results(folder)
    assert decision == folder / "decision.json"
    assert results.scores[""][Task.EMBEDDING].macro["bm25"].score.mean == pytest.approx(0.4)
    assert list(results.scores[""][Task.RERANKING].macro)[:3] == ["random", "bm25", "untrained"]
    before = {name: (folder / name).read_bytes() for name in ("decision.json", "results.json", "scores.json.gz")}
    write_results(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_one_judged_query_is_undefined_not_a_crash(write_study: Write) -> None:
    """After all the training: an interval of one query has no bounds, and the reasons say so."""
    folder = write_study(losing(0.0, 0.0), queries=1, seeds=(1,))
    _, written = write_results(folder)
    found = decided(folder)
    assert written is not None
    assert found.preliminary_reasons[0].endswith("95% interval unknown to unknown)")
