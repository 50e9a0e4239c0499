"""What an arm wins back: known answers, no ratio where nothing was lost, and a decision that arms do not touch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimoer.experiments.recovery import NOTHING_LOST, TOO_LITTLE_LOST, recover
from unimoer.experiments.results import Scores, read_experiment
from unimoer.experiments.summary import write_results
from unimoer.types import Task

Write = Callable[..., Path]
SEEDS = (1, 2, 3)
ROUTERS = {"moe": "sparsegen", "switch": "hard", "null": "random_frozen"}


def scores_of(levels: Mapping[str, float | tuple[float, float]], noise: float = 0.0, queries: int = 60) -> Scores:
    """Mean scores by arm, the same in both data sets and both tasks unless an arm names one for each task; `best` is
    the specialist of both."""
    scores = Scores()
    for position, task in enumerate(Task):
        for arm, level in levels.items():
            mean = level if isinstance(level, float) else level[position]
            name = {"best": ("emb_only", "rank_only")[position]}.get(arm, arm)
            # Centred over seeds together: centred for each, training would seem to have no luck at all.
            own = np.random.default_rng([sum(arm.encode()), position]).normal(0, noise, (len(SEEDS), queries))
            for row, seed in enumerate(SEEDS):
                for dataset in ("hpo", "cwe"):
                    spread = np.random.default_rng([len(dataset), position]).normal(0, 0.05, queries)
                    values = mean + (spread - spread.mean()) + own[row] - own.mean()
                    scores.files[name, seed, dataset, task] = Path(name)
                    scores.per_query[name, seed, dataset, task] = {
                        f"q{number}": {"ndcg@10": float(value)} for number, value in enumerate(values)
                    }
    return scores


def recovered(levels: Mapping[str, float | tuple[float, float]], noise: float = 0.0) -> dict[str, Any]:
    arms = [arm for arm in levels if arm not in ("best", "joint_single")]
    return recover(scores_of(levels, noise), arms, ROUTERS, "ndcg@10", SEEDS, draws=1000)


def test_known_answers() -> None:
    found = recovered({"best": 0.5, "joint_single": 0.4, "moe": 0.475, "switch": 0.52, "null": 0.38})
    for where in (found["tasks"]["embedding"], found["datasets"]["hpo"]["reranking"]):
        assert where["lost"]["mean"] == pytest.approx(0.1)
        cell = where["arms"]["moe"]
        assert cell["mean"] == pytest.approx(0.475)
        assert cell["difference"]["mean"] == pytest.approx(0.075)
        assert cell["difference"]["ci95"] == pytest.approx([0.075, 0.075])
        assert cell["tir"]["mean"] == pytest.approx(5.0)
        assert cell["recovery"]["mean"] == pytest.approx(75.0)
        assert cell["recovery"]["ci95"] == pytest.approx([75.0, 75.0])
        assert where["arms"]["switch"]["recovery"]["mean"] == pytest.approx(120.0), "better than the specialist"
        assert where["arms"]["null"]["recovery"]["mean"] == pytest.approx(-20.0), "worse than the shared LoRA"
    json.dumps(found, allow_nan=False)


def test_an_interval_holds_its_estimate_and_grows_with_noise() -> None:
    levels = {"best": 0.5, "joint_single": 0.4, "moe": 0.45}
    widths = []
    for noise in (0.02, 0.06):
        recovery = recovered(levels, noise)["tasks"]["embedding"]["arms"]["moe"]["recovery"]
        low, high = recovery["ci95"]
        assert low < recovery["mean"] < high
        widths.append(high - low)
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("joint", "noise", "reason"), [(0.5, 0.0, NOTHING_LOST), (0.53, 0.05, NOTHING_LOST), (0.499, 0.1, TOO_LITTLE_LOST)]
)
def test_no_ratio_where_nothing_was_lost(joint: float, noise: float, reason: str) -> None:
    cell = recovered({"best": 0.5, "joint_single": joint, "moe": 0.6}, noise)["tasks"]["embedding"]["arms"]["moe"]
    assert cell["recovery"] == {"mean": None, "ci95": [None, None], "reason": reason}
    assert cell["difference"]["mean"] == pytest.approx(0.6 - joint)


def test_ranking_says_who_leads_and_who_cannot_be_told_apart() -> None:
    levels = {"best": 0.6, "joint_single": 0.4, "moe": 0.5, "switch": 0.501, "null": 0.41}
    found = recovered(levels, noise=0.03)["tasks"]["embedding"]
    assert found["ranking"] == ["switch", "moe", "null", "joint_single"]
    assert found["not_told_apart"] == ["moe"] and found["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert (found["lead"]["arm"], found["lead"]["rival"]) == ("switch", "moe")
    assert found["lead"]["mean"] == pytest.approx(0.001)
    assert (found["learned_router"]["arm"], found["learned_router"]["rival"]) == ("moe", "switch")
    assert found["learned_router"]["mean"] == pytest.approx(-0.001)
    low, high = found["learned_router"]["ci95"]
    assert low < 0 < high


def test_the_shared_lora_may_win_and_nulls_are_not_learned() -> None:
    found = recovered({"best": 0.5, "joint_single": 0.55, "null": 0.5})
    overall = found["overall"]
    assert overall["ranking"] == ["joint_single", "null"] and overall["not_told_apart"] == []
    assert overall["learned_router"] is None


def test_overall_is_the_mean_of_both_ratios() -> None:
    found = recovered({"best": 0.5, "joint_single": (0.45, 0.4), "moe": (0.5, 0.45), "switch": (0.4, 0.5)})
    overall = found["overall"]
    assert overall["arms"]["joint_single"]["tir"]["mean"] == pytest.approx(15.0)
    assert overall["arms"]["moe"]["tir"]["mean"] == pytest.approx(5.0)
    assert overall["arms"]["moe"]["difference"]["mean"] == pytest.approx(10.0)
    assert overall["ranking"] == ["moe", "switch", "joint_single"]
    assert found["tasks"]["reranking"]["ranking"][0] == "switch"


def test_families_are_arms_by_tasks_and_by_data_sets() -> None:
    found = recovered({"best": 0.5, "joint_single": 0.4, "moe": 0.45, "null": 0.4}, noise=0.05)
    assert found["families"] == {"primary": 4, "exploratory": 8}
    cells = [cell for task in found["tasks"].values() for cell in task["arms"].values()]
    smallest = min(cells, key=lambda cell: cell["p_value"])
    assert smallest["p_holm"] == pytest.approx(4 * smallest["p_value"])
    assert all(cell["p_value"] <= cell["p_holm"] <= cell["p_bonferroni"] for cell in cells)
    assert found["tasks"]["embedding"]["arms"]["moe"]["p_holm"] < 0.05


def test_a_specialist_of_zero_leaves_ratios_undefined() -> None:
    found = recovered({"best": 0.0, "joint_single": 0.0, "moe": 0.0})
    for key in found["overall"]["arms"].values():
        assert key["tir"]["mean"] is None or math.isfinite(key["tir"]["mean"])
    json.dumps(found, allow_nan=False)


ARMS = {"joint_moe": {"embedding": 1.0, "reranking": 0.2}, "hard_switch": {"embedding": 0.5, "reranking": 0.3}}


def results_of(folder: Path) -> dict[str, Any]:
    write_results(folder)
    found: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return found


def edit_plan(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    plan = json.loads((folder / "plan.json").read_text("utf-8"))
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")


def test_more_arms_leave_the_decision_as_it_was(write_experiment: Write) -> None:
    folder = write_experiment(arms=ARMS, queries=20)
    results = results_of(folder)
    decision = (folder / "decision.json").read_bytes()
    assert set(results["recovery"]["tasks"]["embedding"]["arms"]) == set(ARMS)
    assert set(results["routing"]) == {"joint_moe"}, "a hard switch weighs nothing"
    again = (folder / "results.json").read_bytes()
    results_of(folder)
    assert (folder / "results.json").read_bytes() == again

    def forget(plan: dict[str, Any]) -> None:
        plan["arms"] = [arm for arm in plan["arms"] if arm not in ARMS]
        plan["runs"] = [run for run in plan["runs"] if run["arm"] not in ARMS]

    edit_plan(folder, forget)
    results = results_of(folder)
    assert (folder / "decision.json").read_bytes() == decision
    assert results["recovery"] is None and results["routing"] == {}


def test_plans_from_before_arms_had_settings(write_experiment: Write) -> None:
    folder = write_experiment(arms=ARMS, queries=20)
    before = results_of(folder)
    edit_plan(folder, lambda plan: plan.pop("arm_settings"))
    found = results_of(folder)
    assert found["recovery"]["tasks"]["embedding"]["arms"] == before["recovery"]["tasks"]["embedding"]["arms"]
    assert found["recovery"]["overall"]["learned_router"] is None, "unknown routers are not called learned"
    assert found["arm_details"]["joint_moe"]["settings"] is None
    assert found["arm_details"]["joint_moe"]["costs"]["parameters_to_joint"] == 0.0


def test_an_arm_for_one_task_is_not_compared(write_experiment: Write) -> None:
    folder = write_experiment(arms=ARMS, queries=20)
    for path in folder.glob("runs/hard_switch-*/eval/*/reranking/per_query.jsonl"):
        path.unlink()
    assert read_experiment(folder).joint_arms == ["joint_moe"]


def test_costs_by_arm(write_experiment: Write) -> None:
    folder = write_experiment(arms=ARMS, queries=20, seeds=(1, 2))
    for number, path in enumerate(sorted(folder.glob("runs/joint_moe-*/status.json"))):
        status = json.loads(path.read_text("utf-8"))
        status |= {"train_seconds": 100.0 + 50 * number, "peak_memory_mb": 10.0 * (1 + number)}
        status["serving"] = {"weights_mb": 300.0, "embedding_ms": 10.0 + number}
        path.write_text(json.dumps(status), "utf-8")
    found = results_of(folder)["arm_details"]
    costs = found["joint_moe"]["costs"]
    assert (costs["train_seconds"], costs["peak_memory_mb"], found["joint_moe"]["runs"]) == (125.0, 20.0, 2)
    assert costs["serving"] == {"weights_mb": 300.0, "embedding_ms": 10.5}
    assert found["hard_switch"]["costs"]["serving"] == {}, "runs from before it was measured"
    assert costs["router_parameters"] == 1728 * 12
    assert costs["parameters_to_joint"] == pytest.approx(100 * 1728 * 12 / 1_105_920)
    assert found["joint_single"]["costs"]["parameters_to_joint"] == 0.0
    assert found["hard_switch"]["settings"]["router"] == "hard"
