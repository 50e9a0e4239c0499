"""The decision: its rules, its guard, and that equal scores give equal bytes however the files came about."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimoer.errors import UserError
from unimoer.experiments.interference import Criterion, decide, summarise_conflicts
from unimoer.experiments.results import Scores, read_experiment, read_log
from unimoer.experiments.summary import write_results
from unimoer.types import Task

Write = Callable[..., Path]
CRITERION = Criterion()
ARMS = {"specialist": {"embedding": "emb_only", "reranking": "rank_only"}}


def scores_of(levels: dict[str, dict[str, float]], seeds: tuple[int, ...] = (1, 2, 3), queries: int = 50) -> Scores:
    """Scores whose means are exactly `levels[task][role]`, with a spread over queries that all roles share."""
    spread = np.linspace(-0.1, 0.1, queries)
    arms = {"joint": "joint_single", "untrained": "untrained"}
    scores = Scores()
    for task, roles in levels.items():
        for role, level in roles.items():
            arm = arms.get(role) or ARMS["specialist"][task]
            for seed in seeds:
                key = (arm, seed, "hpo", Task(task))
                scores.files[key] = Path(f"{arm}-{seed}")
                scores.per_query[key] = {f"q{n}": {"ndcg@10": level + x} for n, x in enumerate(spread.tolist())}
    return scores


def levels(embedding: float, reranking: float, untrained: float = 0.2) -> dict[str, dict[str, float]]:
    """Specialists at 0.5, joint arms below them by the given percentages."""
    return {
        task: {"specialist": 0.5, "joint": 0.5 * (1 - tir / 100), "untrained": untrained}
        for task, tir in (("embedding", embedding), ("reranking", reranking))
    }


def test_verdict_lines() -> None:
    assert CRITERION.verdict([2.0, -5.0]) == "PASS"
    assert CRITERION.verdict([0.0, 2.0]) == "PASS"
    assert CRITERION.verdict([1.99, 0.0]) == "MARGINAL"
    assert CRITERION.verdict([1.0, 0.0]) == "MARGINAL"
    assert CRITERION.verdict([0.99, 0.99]) == "FAIL"
    assert CRITERION.verdict([-3.0, -1.0]) == "FAIL"
    assert CRITERION.verdict([None, 0.0]) == "MARGINAL"
    assert CRITERION.verdict([None, 2.5]) == "PASS"


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
    assert {bounds: CRITERION.region(*bounds) for bounds in expected} == expected


@pytest.mark.parametrize(
    ("embedding", "reranking", "verdict", "supported"),
    [
        (3.0, 0.5, "PASS", "PASS"),
        (0.5, 0.9, "FAIL", "FAIL"),
        (1.5, 0.5, "MARGINAL", "MARGINAL"),
        (-4.0, -2.0, "FAIL", "FAIL"),
    ],
)
def test_decision_of_exact_scores(embedding: float, reranking: float, verdict: str, supported: str) -> None:
    found = decide(scores_of(levels(embedding, reranking)), CRITERION, [1, 2, 3], draws=2000)
    assert (found["verdict"], found["preliminary"], found["preliminary_reasons"]) == (verdict, False, [])
    task = found["tasks"]["embedding"]
    assert task["tir"]["mean"] == pytest.approx(embedding)
    assert task["tir"]["std"] == pytest.approx(0.0, abs=1e-12)
    assert task["tir"]["per_seed"] == {str(seed): pytest.approx(embedding) for seed in (1, 2, 3)}
    assert task["difference"]["mean"] == pytest.approx(0.5 * embedding / 100)
    assert task["gain"]["mean"] == pytest.approx(0.3)
    assert task["specialist"]["mean"] == pytest.approx(0.5)
    assert task["queries"] == 50
    assert found["interval_verdict"]["verdict"] == supported
    assert found["datasets"]["hpo"]["embedding"]["tir"] == task["tir"]
    assert task["p_value"] <= task["p_holm"] <= task["p_bonferroni"]
    json.dumps(found, allow_nan=False)


def test_guard_and_seeds_make_a_verdict_preliminary() -> None:
    weak = levels(3.0, 3.0)
    weak["reranking"]["untrained"] = 0.5
    found = decide(scores_of(weak), CRITERION, [1, 2, 3], draws=500)
    assert found["tasks"]["embedding"]["status"] == "ok"
    assert found["tasks"]["reranking"]["status"] == "underpowered"
    assert found["verdict"] == "PASS" and found["preliminary"]
    assert len(found["preliminary_reasons"]) == 1 and "reranking" in found["preliminary_reasons"][0]

    found = decide(scores_of(levels(3.0, 3.0), seeds=(7,)), CRITERION, [7], draws=500)
    assert found["preliminary"] and "1 seed of at least 3" in found["preliminary_reasons"][0]
    assert found["tasks"]["embedding"]["tir"]["std"] is None
    assert found["method"]["resampled"] == "queries"


def test_specialist_that_scores_nothing_has_no_ratio() -> None:
    nothing = {task: {"specialist": 0.1, "joint": 0.1, "untrained": 0.0} for task in ("embedding", "reranking")}
    scores = scores_of(nothing)
    for key in scores.per_query:
        if key[3] == Task.RERANKING:
            scores.per_query[key] = {query: {"ndcg@10": 0.0} for query in scores.per_query[key]}
    found = decide(scores, CRITERION, [1, 2, 3], draws=200)
    assert found["tasks"]["reranking"]["tir"]["mean"] is None
    assert found["tasks"]["reranking"]["tir"]["ci95"] == [None, None]
    assert found["tasks"]["reranking"]["status"] == "underpowered"
    assert found["verdict"] == "MARGINAL" and found["preliminary"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("seeds", [(42,), (42, 123, 456)])
def test_written_results_are_complete_and_repeatable(write_experiment: Write, seeds: tuple[int, ...]) -> None:
    folder = write_experiment(seeds=seeds, tir={"embedding": 8.0})
    write_results(folder)
    first = (folder / "decision.json").read_bytes(), (folder / "results.json").read_bytes()
    decision, results = (json.loads(content) for content in first)
    assert decision["verdict"] == "PASS" and decision["preliminary"] == (len(seeds) < 3)
    assert set(decision["datasets"]) == {"attack", "cwe", "hpo", "code"}
    assert set(decision["tasks"]["embedding"]["tir"]["per_seed"]) == {str(seed) for seed in seeds}
    macro = results["scores"]["embedding"]["macro"]
    assert set(macro) == {"emb_only", "joint_single", "untrained", "bm25"}
    specialist = decision["tasks"]["embedding"]["specialist"]
    assert macro["emb_only"]["mean"]["ndcg@10"] == pytest.approx(specialist["mean"])
    assert macro["emb_only"]["ci95"] == pytest.approx(specialist["ci95"])
    assert results["ceilings"]["macro"]["recall"] == pytest.approx((0.81 + 0.77 + 0.66 + 0.9) / 4)
    assert len(results["runs"]) == 4 * len(seeds) + 1
    assert results["provenance"]["git_commit"].startswith("0123") and results["provenance"]["differing"] == {}
    assert results["datasets"]["hpo"]["overlap"] == "documents unseen in training"
    assert "2025-01-01" not in first[0].decode(), "a date would make two equal experiments differ"

    write_results(folder)
    assert ((folder / "decision.json").read_bytes(), (folder / "results.json").read_bytes()) == first
    assert not list(folder.glob("*.tmp"))


def test_killed_and_resumed_gives_the_same_bytes(write_experiment: Write) -> None:
    folder = write_experiment()
    write_results(folder)
    expected = (folder / "decision.json").read_bytes()

    log = next(folder.glob("runs/joint_single-*")) / "gradient_conflicts.jsonl"
    lines = log.read_text("utf-8").splitlines(keepends=True)
    torn = lines[40][: len(lines[40]) // 2] + "\n"
    log.write_text("".join([*lines[:40], torn, *lines[20:]]), "utf-8")
    for path in folder.glob("runs/*/eval/*/*/per_query.jsonl"):
        path.write_text("".join(reversed(path.read_text("utf-8").splitlines(keepends=True))), "utf-8")
    for path in folder.glob("runs/*/env.json"):
        path.write_text(path.read_text("utf-8").replace("2025-01-01", "2026-02-02"), "utf-8")
    results = (folder / "results.json").read_bytes()
    (folder / "decision.json").unlink()
    write_results(folder)
    assert (folder / "decision.json").read_bytes() == expected
    assert (folder / "results.json").read_bytes() == results.replace(b"2025-01-01", b"2026-02-02")


def test_conflict_summary_by_hand() -> None:
    line = {"reliability_embedding": 0.4, "reliability_reranking": 0.9, "cosine_corrected": None}
    found = summarise_conflicts(
        [
            {"step": 10, "layer": 0, "cosine": 0.2, **line},
            {"step": 10, "layer": 1, "cosine": -0.1, **line},
            {"step": 20, "layer": 0, "cosine": -0.3, **line, "reliability_reranking": -0.2},
            {"step": 20, "layer": 1, "cosine": None, **line},
        ]
    )
    assert found is not None
    assert found["mean_cosine"] == pytest.approx(-0.2 / 3)
    assert found["negative_share"] == pytest.approx(2 / 3)
    assert found["noise_ceiling"] == pytest.approx((0.6 + 0.6 + 0.0) / 3)
    assert found["mean_cosine_corrected"] is None
    assert (found["measurements"], found["steps"]) == (3, 2)
    assert [entry["layer"] for entry in found["by_layer"]] == [0, 1]
    assert found["by_layer"][1]["mean_cosine"] == -0.1
    assert summarise_conflicts([]) is None


def test_log_of_a_folder_without_conflicts(write_experiment: Write) -> None:
    folder = write_experiment(conflicts=False)
    write_results(folder)
    assert json.loads((folder / "decision.json").read_text("utf-8"))["gradient_conflicts"] is None
    assert read_log(folder / "absent.jsonl", ("step",)) == []


def _break_paired_queries(folder: Path) -> None:
    path = next(folder.glob("runs/joint_single-*/eval/hpo/embedding/per_query.jsonl"))
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")


def _break_line(folder: Path) -> None:
    path = next(folder.glob("runs/emb_only-*/eval/cwe/embedding/per_query.jsonl"))
    path.write_text(path.read_text("utf-8").replace("0.", "O.", 1), "utf-8")


def _edit(pattern: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = next(folder.glob(pattern))
        value = json.loads(path.read_text("utf-8"))
        change(value)
        path.write_text(json.dumps(value), "utf-8")

    return edit


def _remove(pattern: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = next(folder.glob(pattern))
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("plan.json"), r"plan\.json: missing"),
        (_remove("runs/rank_only-*"), r"rank_only-s42-\w+/status\.json: missing"),
        (_remove("runs/rank_only-*/env.json"), r"env\.json: missing"),
        (_remove("runs/rank_only-*/eval"), r"eval: no per_query\.jsonl"),
        (_remove("runs/untrained-*/eval/hpo"), "no embedding scores of arm 'untrained', seed 42, on 'hpo'"),
        (_edit("runs/emb_only-*/status.json", lambda x: x.update(state="training")), "the run is 'training', not done"),
        (_edit("plan.json", lambda x: x.pop("criterion")), "'criterion' is missing"),
        (_edit("plan.json", lambda x: x["criterion"].update(fail=3)), "the fail line 3.0 is above the pass line 2.0"),
        (_edit("plan.json", lambda x: x["criterion"].pop("pass")), "criterion needs metric, pass and fail"),
        (_edit("plan.json", lambda x: x["criterion"].update(metric="ndcg@20")), r"per_query\.jsonl: no 'ndcg@20'"),
        (_edit("plan.json", lambda x: x["runs"][0].pop("seed")), "every entry of 'runs' needs arm, seed and folder"),
        (_edit("runs/joint_single-*/env.json", lambda x: x["data"].update(hpo="sha256:1")), "different data for 'hpo'"),
        (
            _edit("runs/joint_single-*/eval/hpo/reranking/metrics.json", lambda x: x["ceiling"].update(recall=0.5)),
            "did not rerank the same candidate lists",
        ),
        (_break_paired_queries, r"joint_single.*must have the same queries; 1 differ, 'hpo-0' first"),
        (_break_line, r"per_query\.jsonl:1: expected a JSON object"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    write_experiment: Write, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_experiment(queries=12)
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        write_results(folder)
    assert "\n" not in str(raised.value)
    assert not (folder / "decision.json").exists()


def test_a_reference_that_ran_once_stands_in_for_every_seed(write_experiment: Write) -> None:
    scores = read_experiment(write_experiment(seeds=(1, 2, 3), queries=12)).scores
    found = scores.matrix("bm25", Task.EMBEDDING, "hpo", "ndcg@10", [1, 2, 3])
    assert found.shape == (3, 12) and np.array_equal(found[0], found[2])
    with pytest.raises(UserError, match="arm 'emb_only', seed 9"):
        scores.matrix("emb_only", Task.EMBEDDING, "hpo", "ndcg@10", [9])
