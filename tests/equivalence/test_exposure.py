"""Equal exposure: what a joint arm sees of a task is what that task's specialist saw, in the same order.

Without it, a difference between the arms would mix interference with another curriculum.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from unimoer.config import BUILTIN, StudyConfig
from unimoer.data.sampling import Sample
from unimoer.model.unified import UnifiedModel
from unimoer.training.schedule import plan_steps
from unimoer.training.setup import build_samplers
from unimoer.types import Task

Make = Callable[..., dict[str, Any]]
VARIANTS: dict[str, dict[str, Any]] = {
    "as many steps of both": {},
    "more of one, accumulated": {
        "training__reranking__steps": 9,
        "training__optimizer__accumulation": 2,
        "training__reranking__random_until": 0.3,
    },
}


JOINT = [name for name, arm in BUILTIN.items() if len(arm.tasks) == 2]
SPECIALISTS = {Task.EMBEDDING: "emb_only", Task.RERANKING: "rank_only"}


@pytest.mark.parametrize(
    ("arm", "variant"),
    [
        *(("joint_single", variant) for variant in VARIANTS),
        *((arm, "more of one, accumulated") for arm in ("joint_mixed", "joint_staged")),
    ],
)
def test_a_joint_arm_sees_the_batches_of_each_specialist(
    arm: str, variant: str, experiment: Make, tmp_path: Path
) -> None:
    config = tiny.parsed(experiment(**VARIANTS[variant]))
    joint = tiny.train_arm(config, arm, tmp_path / "joint")
    for task, name in SPECIALISTS.items():
        specialist = tiny.train_arm(config, name, tmp_path / name)
        steps = config.training.embedding.steps if task is Task.EMBEDDING else config.training.reranking.steps
        assert len(specialist.seen[task]) == steps * config.training.optimizer.accumulation
        assert joint.seen[task] == specialist.seen[task]
        assert not [other for other in Task if other is not task and specialist.seen[other]]


def stream(config: StudyConfig, arm: str, task: Task) -> list[tuple[str, list[Sample]]]:
    """All batches that an arm's run draws of a task, without training anything."""
    spec = tiny.train_spec(config, arm)
    sampler = build_samplers(spec, tiny.domains(config))[task]
    steps = sum(task in step.tasks for step in plan_steps(spec.steps, spec.schedule, spec.training.staged))
    return [sampler.next() for _ in range(steps * spec.training.optimizer.accumulation)]


@pytest.mark.parametrize("task", Task)
def test_every_joint_arm_draws_the_batches_of_the_specialist(task: Task, experiment: Make) -> None:
    """All of them, `similarity` included: its pilots are made of examples that it trains on as the others do."""
    config = tiny.parsed(experiment(model__adapter={"rank": 16, "alpha": 16.0}))
    expected = stream(config, SPECIALISTS[task], task)
    assert len(expected) == 6
    assert "similarity" in JOINT
    for arm in JOINT:
        assert stream(config, arm, task) == expected, arm


def test_another_seed_sees_another_order(experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment())
    one, other = (tiny.train_arm(config, "joint_single", tmp_path / str(seed), seed=seed) for seed in (1, 2))
    for task in Task:
        assert one.seen[task] != other.seen[task]


def test_a_total_budget_gives_the_first_half_of_each_stream(experiment: Make, tmp_path: Path) -> None:
    """With one kind of negatives throughout: a schedule of negatives is stretched over the shorter run."""
    same = {"training__embedding__random_until": 1.0, "training__reranking__random_until": 1.0}
    config = tiny.parsed(experiment(budget="total", **same))
    joint = tiny.train_arm(config, "joint_single", tmp_path / "joint")
    specialist = tiny.train_arm(config, "emb_only", tmp_path / "emb")
    assert joint.counters.step == specialist.counters.step == 6
    assert joint.seen[Task.EMBEDDING] == specialist.seen[Task.EMBEDDING][:3]


def test_all_arms_of_a_seed_start_from_the_same_adapter_and_head(experiment: Make, tmp_path: Path) -> None:
    """Whatever random numbers were drawn before, and for both kinds of decoder."""
    config = tiny.parsed(experiment())
    first = UnifiedModel(config.model, tiny.CPU, seed=1)
    torch.rand(17)
    again, other = (UnifiedModel(config.model, tiny.CPU, seed=seed) for seed in (1, 2))
    for name, parameter in first.trainable().items():
        assert torch.equal(again.trainable()[name], parameter), name
    assert not torch.equal(first.trainable()["head.projection.weight"], other.trainable()["head.projection.weight"])
    # So the first batch of a task costs the specialist what it costs the joint arm, which starts with embedding.
    tiny.train_arm(config, "joint_single", tmp_path / "joint")
    tiny.train_arm(config, "emb_only", tmp_path / "emb")
    [joint, *_], [specialist, *_] = (tiny.lines(tmp_path / name / "metrics.jsonl") for name in ("joint", "emb"))
    assert joint["task"] == "embedding"
    assert joint["loss"] == specialist["loss"]


def test_building_a_model_leaves_the_random_numbers_alone(base: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    tiny.build(base, seed=9)
    assert torch.equal(torch.rand(5), expected)
