"""The training loop: one readable pass from the first step to the last, or from the last checkpoint on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from unimoer.config import TrainSpec
from unimoer.model.checkpoint import save_model
from unimoer.model.unified import UnifiedModel
from unimoer.training.parallel import ALONE, Group
from unimoer.training.pilots import clear_pilots, fit_pilots
from unimoer.training.setup import Domains, Run, build
from unimoer.training.state import Counters
from unimoer.training.step import StepLog, take_step
from unimoer.types import Task

Progress = Callable[[int, int, Counters, Task, str], None]
"""Called after every step: steps done, steps in all, totals so far, the step's task, a short description."""


def train(
    spec: TrainSpec,
    model: UnifiedModel,
    domains: Domains,
    folder: Path,
    *,
    keep: Sequence[int] = (),
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda message: None,
    group: Group = ALONE,
) -> Counters:
    """Train one run in place, resuming from `folder/checkpoints` when there is something to resume.

    Args:
        model: fresh, as the specification describes it; `spec.seed` has decided its first values.
        keep: task steps N: once every task has done N steps, or its last, the model is saved as `checkpoints/at-N`.
        trackers: besides `metrics.jsonl`.
        group: the processes that share the run; each must call this with the same arguments.

    Raises:
        UserError: the loss or its gradient is not finite. Nothing is saved then: the last checkpoint is a good one.
    """
    # Processes drop out different texts, so they draw different numbers.
    torch.manual_seed(spec.seed + group.rank)
    run = build(spec, model, domains, folder, trackers=trackers, warn=warn, group=group)
    with closing(run):
        run.resume()
        model.train()
        for step in run.order[run.counters.step :]:
            started = time.perf_counter()
            before = dict(run.counters.task_steps)
            run.optimizer.start(step)
            logs, shared = take_step(run, step)
            run.counters.add(logs, time.perf_counter() - started)
            _write(run, logs, {**shared, "seconds": (time.perf_counter() - started) / len(logs)})
            if run.probe is not None and run.probe.is_due(run.counters.step):
                run.probe.measure(model, spec.training, run.counters.step)
            for count in keep:
                if _reached(count, spec, run.counters.task_steps) and not _reached(count, spec, before):
                    _keep(run, domains, count)
            if progress is not None:
                for task, log in logs.items():
                    detail = f"{task.value} loss {log.record()['loss']:.3f}"
                    progress(run.counters.step, len(run.order), run.counters, task, detail)
            if run.counters.step % spec.training.checkpoint_every == 0 and run.counters.step < len(run.order):
                run.save()
        model.eval()
        if model.pilots is not None:
            fit_pilots(model, domains, run.collator, spec)
    return run.counters


def _write(run: Run, logs: dict[Task, StepLog], shared: dict[str, float]) -> None:
    """One line a task in the log of the run, and one a router when it is due."""
    for task, log in logs.items():
        done = run.counters.task_steps[task.value]
        if run.tracker is not None:
            line = {"step": run.counters.step, "task": task.value, "task_step": done, **log.record(), **shared}
            run.tracker.log(line)
        if run.monitor is not None and run.monitor.is_due(done):
            run.monitor.write(run.counters.step, task, log.traces)


def _reached(count: int, spec: TrainSpec, done: dict[str, int]) -> bool:
    """Whether every task has done so many steps, or all that it has."""
    return all(done[task.value] >= min(count, spec.steps[task]) for task in spec.tasks)


def _keep(run: Run, domains: Domains, count: int) -> None:
    """Save the model as it is now, for good; the run goes on as if nothing had happened."""
    if run.group.is_main:
        if run.model.pilots is not None:
            fit_pilots(run.model, domains, run.collator, run.spec)
        save_model(run.model, run.checkpoints / f"at-{count}")
        if run.model.pilots is not None:
            clear_pilots(run.model)
        run.model.train()
    run.group.wait()
