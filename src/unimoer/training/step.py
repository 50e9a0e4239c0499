"""One optimizer step: batches, losses, one gradient of them, and what there is to log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimoer.data.collate import Collator
from unimoer.data.sampling import TaskSampler
from unimoer.errors import UserError
from unimoer.model.routers import Router
from unimoer.model.routing import RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.training.gradcache import RandomState, random_state, set_random_state
from unimoer.training.objectives import Batch, compute_loss, token_counts
from unimoer.training.schedule import Step
from unimoer.training.setup import Run
from unimoer.types import Schedule, Task


class StepLog:
    """One task's part of one step, over its accumulated batches."""

    def __init__(self) -> None:
        self.tokens = self.computed = 0
        self.traces: list[RoutingTrace] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._domains: list[str] = []

    def add(self, domain: str, counts: tuple[int, int], terms: dict[str, float], traces: list[RoutingTrace]) -> None:
        """`counts` are those of `token_counts`."""
        self.tokens, self.computed = self.tokens + counts[0], self.computed + counts[1]
        self._domains.append(domain)
        # Of the last batch only: each holds its whole graph.
        self.traces = traces
        for name, value in terms.items():
            self._sums[name] += value

    @property
    def domain(self) -> str:
        return "+".join(sorted(set(self._domains)))

    def record(self) -> dict[str, Any]:
        """Means over the batches, for the log."""
        return {
            "domain": self.domain,
            **{name: value / len(self._domains) for name, value in self._sums.items()},
            "tokens": self.tokens,
            "padding": 1 - self.tokens / self.computed,
        }


@dataclass(frozen=True)
class _Seen:
    """A batch, and the random numbers from which its loss was computed."""

    batch: Batch
    random: RandomState


def take_step(run: Run, step: Step) -> tuple[dict[Task, StepLog], dict[str, float]]:
    """Move the parameters by one step; what each task did, and what holds for the step as a whole.

    Raises:
        UserError: the loss or its gradient is not finite; the parameters have not moved then.
    """
    settings, model = run.spec.training, run.model
    batches = settings.optimizer.accumulation
    # In steps of both tasks; where a task stands alone there is one gradient, and nothing to combine.
    combines = len(step.tasks) > 1 and settings.gradients.type != "sum"
    logs = {task: StepLog() for task in step.tasks}
    shared: dict[str, float] = {}
    seen: list[dict[Task, _Seen]] = []
    for _ in range(batches):
        losses: dict[Task, Tensor] = {}
        values: dict[Task, float] = {}
        seen.append({})
        for task, log in logs.items():
            domain, batch = next_batch(run.samplers[task], run.collator, task)
            if combines and run.combiner.recomputes_losses:
                seen[-1][task] = _Seen(batch, random_state(model.device))
            traces: list[RoutingTrace] = []
            loss, terms = compute_loss(model, batch, settings, routing=run.routing, traces=traces, group=run.group)
            if not torch.isfinite(loss):
                raise diverged(run.folder, f"{task} loss is {loss.item()}", run.counters.step, domain)
            run.routing.remember(task, traces, run.group)
            log.add(domain, token_counts(model, batch), {"loss": loss.item(), **terms}, traces)
            if combines:
                losses[task], values[task] = loss, terms["task_loss"]
            else:
                # One task after the other: the gradient of the sum, in the memory of one.
                weight = run.combiner.weights[task] if run.spec.schedule is Schedule.MIXED else 1.0
                (loss * (weight / batches)).backward()
        if combines:
            shared = run.combiner.backward(losses, run.optimizer.parameters, values)
    if not combines:
        run.group.add(parameter.grad for parameter in run.optimizer.parameters)
    norm = run.optimizer.clip()
    if not torch.isfinite(norm):
        what, where = f"{'+'.join(step.tasks)} gradient is {norm.item()}", "+".join(log.domain for log in logs.values())
        raise diverged(run.folder, what, run.counters.step, where)
    run.optimizer.step()
    if combines:
        # Before the routers adjust themselves: what is measured is what the optimizer's step has brought.
        run.combiner.after_step(partial(_losses_again, run, seen))
    run.group.average(_router_buffers(model))
    model.after_step()
    return logs, {"lr": run.optimizer.lr, "grad_norm": norm.item(), **shared}


def next_batch(sampler: TaskSampler, collator: Collator, task: Task) -> tuple[str, Batch]:
    """Draw and collate one batch."""
    domain, samples = sampler.next()
    if task is Task.EMBEDDING:
        return domain, collator.embedding(domain, samples)
    return domain, collator.reranking(domain, samples)


def diverged(folder: Path, what: str, step: int, domain: str) -> UserError:
    return UserError(
        f"{folder.name}: {what} at step {step + 1} ({domain}); the last good checkpoint is kept; "
        "lower training.optimizer.lr"
    )


def _losses_again(run: Run, seen: list[dict[Task, _Seen]]) -> dict[Task, float]:
    """Losses of a step's batches at the parameters that it led to, without those of the routers.

    Under the random numbers that they were computed from: a dropout mask or a jitter of its own would be taken for
    progress.
    """
    found: dict[Task, list[float]] = defaultdict(list)
    with torch.no_grad(), _same_random_numbers(run.model):
        for both in seen:
            for task, one in both.items():
                set_random_state(run.model.device, one.random)
                _, terms = compute_loss(run.model, one.batch, run.spec.training, group=run.group)
                found[task].append(terms["task_loss"])
    return {task: sum(values) / len(values) for task, values in found.items()}


@contextmanager
def _same_random_numbers(model: UnifiedModel) -> Iterator[None]:
    """What comes after draws the numbers that it would have drawn without the block."""
    now = random_state(model.device)
    try:
        yield
    finally:
        set_random_state(model.device, now)


def _router_buffers(model: UnifiedModel) -> list[Tensor]:
    """What routers count and average for themselves, from the texts of one process."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, Router)
        for buffer in module.buffers(recurse=False)
        if buffer.is_floating_point()
    ]
