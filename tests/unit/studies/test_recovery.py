"""What an arm wins back: known answers, no ratio where nothing was lost, and its own start beside a learned router."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from study_folder import arm_plan, write_study
from unimoer.schema.results import ArmTask, Recovery
from unimoer.studies.evidence import read_evidence
from unimoer.studies.recovery import NOTHING_LOST, PRIMARY, TOO_LITTLE_LOST, recover
from unimoer.types import Task

Write = Callable[..., Path]
LEARNED = ("moe", "moe_start")


def recovered(folder: Path, levels: Mapping[str, float | tuple[float, float]], noise: float = 0.0) -> Recovery:
    """Levels by arm, the same for both tasks unless an arm names one for each; `best` is the specialist of both."""
    both = {
        arm: dict(zip(Task, level if isinstance(level, tuple) else (level, level), strict=True))
        for arm, level in levels.items()
        if arm != "best"
    }
    best = levels["best"]
    assert isinstance(best, float)
    specialists = {"emb_only": {Task.EMBEDDING: best}, "rank_only": {Task.RERANKING: best}}
    plans = {arm: arm_plan(arm) for arm in (*specialists, *both)}
    plans |= {arm: arm_plan(arm, router="sparsegen", learned=arm == "moe") for arm in LEARNED if arm in both}
    found = recover(read_evidence(write_study(folder / "s", specialists | both, noise=noise, arms=plans)))
    assert found is not None
    return found


def arm(found: Recovery, name: str, task: Task = Task.EMBEDDING) -> ArmTask:
    return found.tasks[task].arms[name]


def test_known_answers(tmp_path: Path) -> None:
    found = recovered(tmp_path, {"best": 0.5, "joint_single": 0.4, "moe": 0.475, "switch": 0.52, "null": 0.38})
    assert found.tasks[Task.EMBEDDING].lost.mean == pytest.approx(0.1)
    for cells in (found.tasks[Task.EMBEDDING].arms, found.datasets["hpo"][Task.RERANKING]):
        assert cells["moe"].score.mean == pytest.approx(0.475)
        assert cells["moe"].difference.mean == pytest.approx(0.075)
        assert cells["moe"].difference.ci95 == pytest.approx((0.075, 0.075))
        assert cells["moe"].tir.mean == pytest.approx(5.0)
        assert cells["moe"].recovery.mean == pytest.approx(75.0)
        assert cells["moe"].recovery.ci95 == pytest.approx((75.0, 75.0))
        assert cells["switch"].recovery.mean == pytest.approx(120.0), "better than the specialist"
        assert cells["null"].recovery.mean == pytest.approx(-20.0), "worse than the shared LoRA"
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


def test_an_interval_holds_its_estimate_and_grows_with_noise(tmp_path: Path) -> None:
    widths = []
    for noise in (0.02, 0.06):
        recovery = arm(
            recovered(tmp_path / str(noise), {"best": 0.5, "joint_single": 0.4, "moe": 0.45}, noise), "moe"
        ).recovery
        low, high = recovery.ci95
        assert low is not None and high is not None and recovery.mean is not None
        assert low < recovery.mean < high
        widths.append(high - low)
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("joint", "noise", "reason"), [(0.5, 0.0, NOTHING_LOST), (0.53, 0.05, NOTHING_LOST), (0.499, 0.1, TOO_LITTLE_LOST)]
)
def test_no_ratio_where_nothing_was_lost(joint: float, noise: float, reason: str, tmp_path: Path) -> None:
    cell = arm(recovered(tmp_path, {"best": 0.5, "joint_single": joint, "moe": 0.6}, noise), "moe")
    assert (cell.recovery.mean, cell.recovery.ci95, cell.recovery.reason) == (None, (None, None), reason)
    assert cell.difference.mean == pytest.approx(0.6 - joint)


def test_a_learned_router_is_judged_against_its_own_start(tmp_path: Path) -> None:
    """Most of what a prior gives is there before anything is learned."""
    found = recovered(tmp_path, {"best": 0.5, "joint_single": 0.4, "moe": 0.47, "moe_start": 0.46, "switch": 0.45})
    gained = arm(found, "moe").to_start
    assert gained is not None and gained.mean == pytest.approx(0.01)
    assert arm(found, "moe_start").to_start is None
    assert arm(found, "switch").to_start is None
    overall = found.arms["moe"].to_start
    assert overall is not None and overall.mean == pytest.approx(2.0), "in points of the ratio"
    learned = found.ranking.learned
    assert learned is not None and (learned.arm, learned.rival) == ("moe", "moe_start")


def test_ranking_says_who_leads_and_who_cannot_be_told_apart(tmp_path: Path) -> None:
    levels = {"best": 0.6, "joint_single": 0.4, "moe": 0.5, "switch": 0.501, "null": 0.41}
    found = recovered(tmp_path, levels, noise=0.03).tasks[Task.EMBEDDING].ranking
    assert found.order == ["switch", "moe", "null", "joint_single"]
    assert found.not_told_apart == ["moe"]
    assert found.confidence == pytest.approx(1 - 0.05 / 3)
    assert found.lead is not None and (found.lead.arm, found.lead.rival) == ("switch", "moe")
    assert found.lead.mean == pytest.approx(0.001, abs=1e-6)
    assert found.learned is not None and (found.learned.arm, found.learned.rival) == ("moe", "switch")
    low, high = found.learned.ci95
    assert low is not None and high is not None and low < 0 < high


def test_the_shared_lora_may_win(tmp_path: Path) -> None:
    found = recovered(tmp_path, {"best": 0.5, "joint_single": 0.55, "null": 0.5})
    assert found.ranking.order == ["joint_single", "null"]
    assert found.ranking.not_told_apart == []
    assert found.ranking.learned is None


def test_an_arm_is_judged_by_both_tasks(tmp_path: Path) -> None:
    levels = {"best": 0.5, "joint_single": 0.4, "moe": (0.5, 0.32), "switch": (0.42, 0.42)}
    found = recovered(tmp_path, levels)
    assert found.ranking.order == ["switch", "moe", "joint_single"]
    assert found.arms["moe"].tir.mean == pytest.approx((0 + 36) / 2)
    assert found.arms["switch"].difference.mean == pytest.approx(20 - 16)


def test_p_values_are_corrected_over_the_declared_family(tmp_path: Path) -> None:
    found = recovered(tmp_path, {"best": 0.5, "joint_single": 0.4, "moe": 0.41, "switch": 0.42}, noise=0.05)
    assert found.families[PRIMARY] == 4
    for name in ("moe", "switch"):
        cell = arm(found, name)
        assert cell.p_value is not None and cell.p_bonferroni is not None and cell.p_holm is not None
        assert cell.p_bonferroni == pytest.approx(min(1.0, 4 * cell.p_value))
        assert cell.p_value <= cell.p_holm <= cell.p_bonferroni


def test_without_other_arms_there_is_nothing_to_recover(tmp_path: Path) -> None:
    levels = {"emb_only": {Task.EMBEDDING: 0.5}, "rank_only": {Task.RERANKING: 0.5}}
    folder = write_study(tmp_path / "s", {**levels, "joint_single": dict.fromkeys(Task, 0.4)})
    assert recover(read_evidence(folder)) is None
