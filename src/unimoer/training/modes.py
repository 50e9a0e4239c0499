"""Which tasks each step of a run trains, and at what learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unimoer.config import ExperimentConfig, OptimizerConfig
from unimoer.types import Task, TrainingMode


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    tasks: tuple[Task, ...]
    place: int
    """Among the steps of its stage, from 0."""
    of: int
    """Steps of the stage: warm-up and decay run over them."""
    lr: float | None = None
    """Peak learning rate of the stage; None for the optimizer's."""


def schedule(config: ExperimentConfig, mode: TrainingMode) -> Sequence[Step]:
    """Every optimizer step, first to last.

    A specialist has one task. `joint_single` and `joint_moe` alternate, embedding on odd steps (counted from 1) and
    reranking on even ones. `joint_mixed` trains both in every step. In either, when one task has more steps than the
    other, those of both are spread evenly over the run. `joint_staged` finishes embedding before it begins reranking.
    """
    steps = {task: config.steps(mode, task) for task in mode.tasks}
    if mode is TrainingMode.JOINT_STAGED:
        staged = config.training.staged
        rates = {Task.EMBEDDING: staged.stage1_lr, Task.RERANKING: staged.stage2_lr}
        return [Step((task,), place, steps[task], rates[task]) for task in mode.tasks for place in range(steps[task])]
    order = _mixed(steps) if mode is TrainingMode.JOINT_MIXED else _alternating(steps)
    return [Step(tasks, place, len(order)) for place, tasks in enumerate(order)]


def _alternating(steps: dict[Task, int]) -> list[tuple[Task, ...]]:
    done = dict.fromkeys(steps, 0)
    order: list[tuple[Task, ...]] = []
    for _ in range(sum(steps.values())):
        # The task that lags furthest behind its share goes next; a tie goes to the first, embedding.
        task = min(steps, key=lambda t: (done[t] + 0.5) / steps[t] if done[t] < steps[t] else float("inf"))
        done[task] += 1
        order.append((task,))
    return order


def _mixed(steps: dict[Task, int]) -> list[tuple[Task, ...]]:
    total = max(steps.values())
    return [
        tuple(task for task, count in steps.items() if (place + 1) * count // total > place * count // total)
        for place in range(total)
    ]


def learning_rate(config: OptimizerConfig, step: Step) -> float:
    """Factor on the peak rate: linear warm-up, then constant, linear or cosine."""
    warmup = max(1, round(config.warmup_ratio * step.of))
    if step.place < warmup:
        return (step.place + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    left = (step.of - step.place) / max(1, step.of - warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
