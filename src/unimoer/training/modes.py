"""Which task each step of a run trains."""

from __future__ import annotations

from collections.abc import Sequence

from unimoer.config import ExperimentConfig
from unimoer.types import Task, TrainingMode


def schedule(config: ExperimentConfig, arm: TrainingMode) -> Sequence[Task]:
    """The task of every optimizer step, first to last.

    A specialist has one task. `joint_single` alternates, embedding on odd steps (counted from 1) and reranking on
    even ones; when one task has more steps than the other, its steps are spread evenly over the run.
    """
    remaining = {task: config.steps(arm, task) for task in arm.tasks}
    total = sum(remaining.values())
    done = dict.fromkeys(remaining, 0)
    order: list[Task] = []
    for _ in range(total):
        # The task that lags furthest behind its share goes next; a tie goes to the first, embedding.
        task = min(remaining, key=lambda t: (done[t] + 0.5) / remaining[t] if done[t] < remaining[t] else float("inf"))
        done[task] += 1
        order.append(task)
    return order
