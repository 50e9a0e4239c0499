"""Which task every step trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimoer.config.training import StagedTrainingConfig
from unimoer.training.schedule import Step, plan_steps
from unimoer.types import Schedule, Task

E, R = Task.EMBEDDING, Task.RERANKING
STAGED = StagedTrainingConfig(stage1_lr=1e-3, stage2_lr=2e-4)


def plan(steps: Mapping[Task, int], schedule: Schedule = Schedule.ALTERNATING) -> Sequence[Step]:
    return plan_steps(steps, schedule, STAGED)


def tasks(steps: Mapping[Task, int]) -> list[Task]:
    """The one task of every step."""
    found = plan(steps)
    assert all((step.index, step.total, step.peak_lr) == (place, len(found), None) for place, step in enumerate(found))
    return [task for step in found for [task] in [step.tasks]]


@pytest.mark.parametrize("schedule", [Schedule.ALTERNATING, Schedule.MIXED])
def test_a_specialist_has_one_task(schedule: Schedule) -> None:
    for task in Task:
        assert [step.tasks for step in plan({task: 3}, schedule)] == [(task,)] * 3


@pytest.mark.parametrize("steps", [{E: 4, R: 4}, {R: 4, E: 4}])
def test_joint_alternates_with_embedding_on_odd_steps(steps: dict[Task, int]) -> None:
    """In whatever order the tasks were named."""
    assert tasks(steps) == [E, R] * 4


@given(embedding=st.integers(1, 60), reranking=st.integers(1, 60))
def test_unequal_shares_are_exact_and_spread_over_the_run(embedding: int, reranking: int) -> None:
    order = tasks({E: embedding, R: reranking})
    assert (order.count(E), order.count(R)) == (embedding, reranking)
    total = embedding + reranking
    for done in range(1, total + 1):
        # Never more than one step ahead of or behind an even spread.
        assert abs(order[:done].count(E) - embedding * done / total) <= 1


@pytest.mark.parametrize("schedule", Schedule)
def test_a_task_without_steps_is_left_out(schedule: Schedule) -> None:
    """Half of a single step, with a total budget."""
    assert [step.tasks for step in plan({E: 0, R: 4}, schedule)] == [(R,)] * 4
    assert not plan({E: 0, R: 0}, schedule)


@given(embedding=st.integers(1, 60), reranking=st.integers(1, 60))
def test_mixed_steps_have_both_tasks_and_those_with_one_are_spread(embedding: int, reranking: int) -> None:
    steps = plan({E: embedding, R: reranking}, Schedule.MIXED)
    total = max(embedding, reranking)
    assert len(steps) == total
    for task, count in ((E, embedding), (R, reranking)):
        taken = [task in step.tasks for step in steps]
        assert sum(taken) == count
        for done in range(1, total + 1):
            assert abs(sum(taken[:done]) - count * done / total) < 1
    assert sum(len(step.tasks) == 2 for step in steps) == min(embedding, reranking)
    assert all(step.tasks in ((E, R), (E,), (R,)) for step in steps)
    assert [(step.index, step.total, step.peak_lr) for step in steps] == [
        (place, total, None) for place in range(total)
    ]


def test_stages_follow_each_other_each_with_a_rate_and_a_schedule_of_its_own() -> None:
    steps = plan({R: 4, E: 6}, Schedule.STAGED)
    assert [step.tasks for step in steps] == [(E,)] * 6 + [(R,)] * 4
    assert [step.index for step in steps] == [*range(6), *range(4)]
    assert [step.total for step in steps] == [6] * 6 + [4] * 4
    assert [step.peak_lr for step in steps] == [1e-3] * 6 + [2e-4] * 4


@pytest.mark.parametrize("schedule", Schedule)
def test_every_schedule_gives_each_task_what_its_specialist_gets(schedule: Schedule) -> None:
    for embedding, reranking in ((5, 5), (9, 4), (3, 8)):
        steps = plan({E: embedding, R: reranking}, schedule)
        assert sum(E in step.tasks for step in steps) == embedding
        assert sum(R in step.tasks for step in steps) == reranking
