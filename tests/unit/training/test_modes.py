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


def config(embedding: int, reranking: int, **changes: Any) -> ExperimentConfig:
    steps = {"training__embedding__steps": embedding, "training__reranking__steps": reranking}
    return tiny.parsed(tiny.experiment(Path("base"), {"kitchen": Path("data")}, **steps, **changes))


def test_a_specialist_has_one_task() -> None:
    assert list(schedule(config(3, 5), TrainingMode.EMB_ONLY)) == [E] * 3
    assert list(schedule(config(3, 5), TrainingMode.RANK_ONLY)) == [R] * 5


def test_joint_alternates_with_embedding_on_odd_steps() -> None:
    assert list(schedule(config(4, 4), JOINT)) == [E, R] * 4


@given(embedding=st.integers(1, 60), reranking=st.integers(1, 60))
def test_unequal_shares_are_exact_and_spread_over_the_run(embedding: int, reranking: int) -> None:
    order = list(schedule(config(embedding, reranking), JOINT))
    assert (order.count(E), order.count(R)) == (embedding, reranking)
    total = embedding + reranking
    for done in range(1, total + 1):
        # Never more than one step ahead of or behind an even spread.
        assert abs(order[:done].count(E) - embedding * done / total) <= 1


@pytest.mark.parametrize(("embedding", "reranking", "wanted"), [(6, 6, (3, 3)), (7, 4, (3, 2)), (1, 8, (0, 4))])
def test_a_total_budget_halves_every_task(embedding: int, reranking: int, wanted: tuple[int, int]) -> None:
    settings = config(embedding, reranking, budget="total")
    order = list(schedule(settings, JOINT))
    assert (order.count(E), order.count(R)) == wanted
    assert len(schedule(settings, TrainingMode.EMB_ONLY)) == embedding
    assert (settings.steps(JOINT, E), settings.steps(JOINT, R)) == wanted
    assert settings.steps(TrainingMode.EMB_ONLY, R) == 0
