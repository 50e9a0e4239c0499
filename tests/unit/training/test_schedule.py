"""Which task every step trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from unimoer.config import ExperimentConfig
from unimoer.training.modes import schedule
from unimoer.types import Task, TrainingMode

E, R = Task.EMBEDDING, Task.RERANKING
JOINT = TrainingMode.JOINT_SINGLE
ALTERNATING = (TrainingMode.JOINT_SINGLE, TrainingMode.JOINT_MOE)


def config(embedding: int, reranking: int, **changes: Any) -> ExperimentConfig:
    steps = {"training__embedding__steps": embedding, "training__reranking__steps": reranking}
    return tiny.parsed(tiny.experiment(Path("base"), {"kitchen": Path("data")}, **steps, **changes))


def tasks(settings: ExperimentConfig, mode: TrainingMode) -> list[Task]:
    """The one task of every step."""
    steps = schedule(settings, mode)
    assert all((step.place, step.of, step.lr) == (place, len(steps), None) for place, step in enumerate(steps))
    return [task for step in steps for [task] in [step.tasks]]


def test_a_specialist_has_one_task() -> None:
    assert tasks(config(3, 5), TrainingMode.EMB_ONLY) == [E] * 3
    assert tasks(config(3, 5), TrainingMode.RANK_ONLY) == [R] * 5


@pytest.mark.parametrize("mode", ALTERNATING)
def test_joint_alternates_with_embedding_on_odd_steps(mode: TrainingMode) -> None:
    assert tasks(config(4, 4), mode) == [E, R] * 4


@given(embedding=st.integers(1, 60), reranking=st.integers(1, 60))
def test_unequal_shares_are_exact_and_spread_over_the_run(embedding: int, reranking: int) -> None:
    order = tasks(config(embedding, reranking), JOINT)
    assert (order.count(E), order.count(R)) == (embedding, reranking)
    total = embedding + reranking
    for done in range(1, total + 1):
        # Never more than one step ahead of or behind an even spread.
        assert abs(order[:done].count(E) - embedding * done / total) <= 1


@pytest.mark.parametrize(("embedding", "reranking", "wanted"), [(6, 6, (3, 3)), (7, 4, (3, 2)), (1, 8, (0, 4))])
def test_a_total_budget_halves_every_task(embedding: int, reranking: int, wanted: tuple[int, int]) -> None:
    settings = config(embedding, reranking, budget="total")
    order = tasks(settings, JOINT)
    assert (order.count(E), order.count(R)) == wanted
    assert len(schedule(settings, TrainingMode.EMB_ONLY)) == embedding
    assert (settings.steps(JOINT, E), settings.steps(JOINT, R)) == wanted
    assert settings.steps(TrainingMode.EMB_ONLY, R) == 0


@given(embedding=st.integers(1, 60), reranking=st.integers(1, 60))
def test_mixed_steps_have_both_tasks_and_those_with_one_are_spread(embedding: int, reranking: int) -> None:
    steps = schedule(config(embedding, reranking), TrainingMode.JOINT_MIXED)
    total = max(embedding, reranking)
    assert len(steps) == total
    for task, count in ((E, embedding), (R, reranking)):
        taken = [task in step.tasks for step in steps]
        assert sum(taken) == count
        for done in range(1, total + 1):
            assert abs(sum(taken[:done]) - count * done / total) < 1
    assert sum(len(step.tasks) == 2 for step in steps) == min(embedding, reranking)
    assert all(step.tasks in ((E, R), (E,), (R,)) for step in steps)
    assert [(step.place, step.of, step.lr) for step in steps] == [(place, total, None) for place in range(total)]


def staged(**settings: float) -> ExperimentConfig:
    rates = {"stage1_lr": 1e-3, "stage2_lr": 2e-4}
    return config(6, 4, training__staged={**rates, **settings})


def test_stages_follow_each_other_each_with_a_rate_and_a_schedule_of_its_own() -> None:
    steps = schedule(staged(), TrainingMode.JOINT_STAGED)
    assert [step.tasks for step in steps] == [(E,)] * 6 + [(R,)] * 4
    assert [step.place for step in steps] == [*range(6), *range(4)]
    assert [step.of for step in steps] == [6] * 6 + [4] * 4
    assert [step.lr for step in steps] == [1e-3] * 6 + [2e-4] * 4


@pytest.mark.parametrize(("epochs", "wanted"), [((1, 1), (6, 4)), ((0.5, 2), (3, 8)), ((1.25, 0.3), (8, 1))])
def test_epochs_of_a_stage_are_in_units_of_the_specialist(epochs: tuple[float, float], wanted: tuple[int, int]) -> None:
    settings = staged(stage1_epochs=epochs[0], stage2_epochs=epochs[1])
    steps = schedule(settings, TrainingMode.JOINT_STAGED)
    assert (sum(step.tasks == (E,) for step in steps), sum(step.tasks == (R,) for step in steps)) == wanted
    assert (settings.steps(TrainingMode.JOINT_STAGED, E), settings.steps(TrainingMode.JOINT_STAGED, R)) == wanted
    # Of no other mode.
    assert settings.steps(TrainingMode.JOINT_MIXED, E) == 6


@pytest.mark.parametrize("mode", [mode for mode in TrainingMode if len(mode.tasks) == 2])
def test_every_joint_mode_gives_each_task_what_its_specialist_gets(mode: TrainingMode) -> None:
    for embedding, reranking in ((5, 5), (9, 4), (3, 8)):
        steps = schedule(config(embedding, reranking), mode)
        assert sum(E in step.tasks for step in steps) == embedding
        assert sum(R in step.tasks for step in steps) == reranking
