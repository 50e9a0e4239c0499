"""Curves and grids: a point for every arm, step and task, against the specialist of the same point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from study_folder import arm_plan, losing
from unimoer.studies.evidence import read_evidence
from unimoer.studies.points import coordinates, estimate_points
from unimoer.studies.scores import Scores
from unimoer.types import Task

Write = Callable[..., Path]


def growing(arm: str, task: Task, step: int | None) -> float:
    """All arms gain with the steps, the shared LoRA half as much."""
    return (100 if step is None else step) / 1000 * (0.5 if arm == "joint_single" else 1.0)


def test_a_curve_over_the_steps(write_study: Write) -> None:
    folder = write_study(losing(0.0, 0.0), study="budget", steps=(10, 40), by_step=growing)
    found = estimate_points(read_evidence(folder), x="steps")
    assert found.x == "steps"
    joint = [point for point in found.points if (point.arm, point.task) == ("joint_single", Task.EMBEDDING)]
    assert [point.step for point in joint] == [10, 40, None]
    assert [point.x["steps"] for point in joint] == [10, 40, 100]
    assert [point.score.mean for point in joint] == pytest.approx([0.505, 0.52, 0.55])
    # Against the specialist of the same step, not of the end.
    ratios = [point.tir.mean for point in joint if point.tir is not None]
    assert ratios == pytest.approx([100 * 0.005 / 0.51, 100 * 0.02 / 0.54, 100 * 0.05 / 0.6])
    assert all(point.to_bm25 is not None and point.seeds == [1, 2, 3] for point in found.points)
    assert all(point.tir is None for point in found.points if point.arm == "emb_only")


def test_a_study_that_lacks_seeds_shows_what_is_there(write_study: Write) -> None:
    """Long studies are published as they grow."""
    folder = write_study(losing(10.0, 0.0), study="budget")
    scores = Scores.read(folder)
    for key in [key for key in scores.per_query if key.arm == "joint_single" and key.seed == 3]:
        del scores.per_query[key]
    scores.write(folder, "ndcg@10")
    points = estimate_points(read_evidence(folder), x="steps").points
    joint = next(point for point in points if (point.arm, point.task) == ("joint_single", Task.EMBEDDING))
    assert joint.seeds == [1, 2]
    assert joint.tir is not None and joint.tir.mean == pytest.approx(10.0)


def test_coordinates_are_those_of_the_plan() -> None:
    plan = arm_plan(
        "moe", experts={"a": 4, "b": [2, 4]}, router_parameters=10, base_parameters=90_000, layers=2, router="softmax"
    )
    assert coordinates(plan, Task.EMBEDDING, None) == {
        "steps": 100.0,
        "layers": 2.0,
        "trainable": 1010.0,
        "total": 91_010.0,
        "experts": 2.0,
        "rank": 7.0,
        "rank_a": 4.0,
        "rank_b": 3.0,
    }
    assert coordinates(plan, Task.RERANKING, 40)["steps"] == 40.0
