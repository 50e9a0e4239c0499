"""Which tasks each step of a run trains, and at what learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unimoer.config import OptimizerConfig
from unimoer.config.training import StagedTrainingConfig
from unimoer.types import Schedule, Task


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. Warm-up and decay run over its stage, which is the whole run unless the run is staged."""

    tasks: tuple[Task, ...]
    index: int
    """Within the stage, from 0."""
    total: int
    """Steps of the stage."""
    peak_lr: float | None = None
    """Peak learning rate of the stage; None for the optimizer's."""


def plan_steps(steps: Mapping[Task, int], schedule: Schedule, staged: StagedTrainingConfig) -> Sequence[Step]:
    """Every optimizer step, first to last, from the number of steps in which each task takes part.

    `alternating` trains embedding on odd steps (counted from 1) and reranking on even ones; `mixed` trains both in
    every step. In either, when one task has more steps than the other, those of both are spread evenly over the run.
    `staged` finishes embedding before it begins reranking. A single task has all the steps, whatever the schedule.
    """
    # In the order of `Task`, whatever the order in which they were given.
    counts = {task: steps[task] for task in Task if steps.get(task)}
    if schedule is Schedule.STAGED:
        rates = {Task.EMBEDDING: staged.stage1_lr, Task.RERANKING: staged.stage2_lr}
        return [Step((task,), index, count, rates[task]) for task, count in counts.items() for index in range(count)]
    order = _mixed(counts) if schedule is Schedule.MIXED else _alternating(counts)
    return [Step(tasks, index, len(order)) for index, tasks in enumerate(order)]


def _alternating(counts: Mapping[Task, int]) -> list[tuple[Task, ...]]:
    done = dict.fromkeys(counts, 0)
    order: list[tuple[Task, ...]] = []
    for _ in range(sum(counts.values())):
        # The task that lags furthest behind its share goes next; a tie goes to the first, embedding.
        task = min(counts, key=lambda t: (done[t] + 0.5) / counts[t] if done[t] < counts[t] else float("inf"))
        done[task] += 1
        order.append((task,))
    return order


def _mixed(counts: Mapping[Task, int]) -> list[tuple[Task, ...]]:
    total = max(counts.values(), default=0)
    return [
        tuple(task for task, count in counts.items() if (index + 1) * count // total > index * count // total)
        for index in range(total)
    ]


def learning_rate(config: OptimizerConfig, step: Step) -> float:
    """Factor on the peak rate: linear warm-up, then constant, linear or cosine."""
    warmup = max(1, round(config.warmup_ratio * step.total))
    if step.index < warmup:
        return (step.index + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    left = (step.total - step.index) / max(1, step.total - warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
