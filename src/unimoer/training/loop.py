"""The training loop: one readable pass from the first step to the last, or from the last checkpoint on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unimoer.config import ExperimentConfig, OptimizerConfig, TrainingConfig
from unimoer.data.collate import Collator
from unimoer.data.sampling import TaskSampler
from unimoer.errors import UserError
from unimoer.model.routing import RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.tracking import JsonlWriter, Tracker
from unimoer.training.conflict import ConflictProbe
from unimoer.training.modes import learning_rate, schedule
from unimoer.training.multitask import build_combiner
from unimoer.training.objectives import Batch, compute_loss, token_counts
from unimoer.training.routing import RoutingLosses, RoutingMonitor
from unimoer.training.state import Counters, latest_state, load_state, save_state
from unimoer.types import Task, TrainingMode

Progress = Callable[[int, int, Counters, Task, str], None]
"""Called after every step: steps done, steps in all, totals so far, the step's task, a short description."""


def build_optimizer(model: UnifiedModel, config: OptimizerConfig, mode: TrainingMode) -> torch.optim.AdamW:
    """AdamW over what a mode's tasks reach. A specialist for embedding does not carry the score head."""
    task = mode.tasks[0] if len(mode.tasks) == 1 else None
    rates = {"adapter": config.lr, "router": config.router_lr or config.lr, "head": config.head_lr or config.lr}
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in model.trainable(task).items():
        kind = "head" if name.startswith("head.") else "router" if ".routers." in name else "adapter"
        members[kind].append(parameter)
    groups = [{"params": found, "peak_lr": rates[kind], "lr": rates[kind]} for kind, found in members.items() if found]
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)


def train(
    config: ExperimentConfig,
    mode: TrainingMode,
    model: UnifiedModel,
    samplers: dict[Task, TaskSampler],
    collator: Collator,
    folder: Path,
    *,
    tracker: Tracker,
    probe: ConflictProbe | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Counters:
    """Train one run in place, resuming from `folder/checkpoints` when there is something to resume.

    Raises:
        UserError: the loss or its gradient is no number. Nothing is saved then: the last checkpoint is a good one.
    """
    settings = config.training
    order = schedule(config, mode)
    optimizer = build_optimizer(model, settings.optimizer, mode)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    checkpoints = folder / "checkpoints"
    counters = Counters(task_steps={task.value: 0 for task in mode.tasks})
    routing = RoutingLosses(model.config.adapter.router)
    weights = {Task.EMBEDDING: 1.0, Task.RERANKING: settings.ranking_weight}
    combiner = build_combiner(settings.gradients, tuple(Task), weights)
    found = latest_state(checkpoints)
    if found is not None:
        counters = load_state(found, model, optimizer, samplers, routing, combiner)
    tracker.rewind(counters.step)
    monitor = None
    if model.config.adapter.is_routed:
        monitor = RoutingMonitor(settings.routing_every, JsonlWriter(folder / "routing.jsonl"), warn)
        monitor.writer.rewind(counters.step)
    if probe is not None:
        probe.rewind(counters.step)
    model.train()
    for number in range(counters.step, len(order)):
        started = time.perf_counter()
        step = order[number]
        if step.place == 0:
            # A stage begins with moments of its own.
            optimizer.state.clear()
        factor = learning_rate(settings.optimizer, step)
        for group in optimizer.param_groups:
            # A stage has a rate for the adapter; the others keep their proportion to it.
            stage = 1.0 if step.lr is None else step.lr / settings.optimizer.lr
            group["lr"] = group["peak_lr"] * stage * factor
        optimizer.zero_grad(set_to_none=True)
        logs = {task: StepLog() for task in step.tasks}
        batches: list[dict[Task, Batch]] = []
        for _ in range(settings.optimizer.accumulation):
            batches.append({})
            losses: dict[Task, Tensor] = {}
            for task, log in logs.items():
                domain, batch = next_batch(samplers[task], collator, task)
                traces: list[RoutingTrace] = []
                loss, terms = compute_loss(model, batch, settings, routing=routing, traces=traces)
                if not torch.isfinite(loss):
                    raise diverged(folder, f"{task} loss is {loss.item()}", number, domain)
                routing.remember(task, traces)
                log.add(domain, token_counts(model, batch), {"loss": loss.item(), **terms}, traces)
                batches[-1][task] = batch
                weight = combiner.weights[task] if mode is TrainingMode.JOINT_MIXED else 1.0
                if len(step.tasks) > 1 and settings.gradients.type != "sum":
                    losses[task] = loss
                else:
                    # One task after the other: the gradient of the sum, in the memory of one.
                    (loss * (weight / settings.optimizer.accumulation)).backward()
            if losses:
                combined = combiner.backward(losses, parameters)
        norm = nn.utils.clip_grad_norm_(parameters, settings.optimizer.max_grad_norm)
        if not torch.isfinite(norm):
            raise diverged(folder, f"{'+'.join(step.tasks)} gradient is {norm.item()}", number, domain)
        optimizer.step()
        model.after_step()
        if losses:
            combiner.after_step(partial(_recompute, model, batches, settings))
        counters.add(number + 1, logs, time.perf_counter() - started)
        shared = {
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": norm.item(),
            **(combined if losses else {}),
            "seconds": (time.perf_counter() - started) / len(logs),
        }
        for task, log in logs.items():
            done = counters.task_steps[task.value]
            tracker.log({"step": counters.step, "task": task.value, "task_step": done, **log.record(), **shared})
            if monitor is not None and monitor.is_due(done):
                monitor.write(counters.step, task, log.traces)
        if probe is not None and probe.is_due(counters.step):
            probe.measure(model, settings, counters.step)
        if progress is not None:
            for task, log in logs.items():
                detail = f"{task.value} loss {log.record()['loss']:.3f}"
                progress(counters.step, len(order), counters, task, detail)
        if counters.step % settings.checkpoint_every == 0 and counters.step < len(order):
            save_state(checkpoints, model, optimizer, samplers, routing, combiner, counters)
    model.eval()
    return counters


def diverged(folder: Path, what: str, number: int, domain: str) -> UserError:
    return UserError(
        f"{folder.name}: {what} at step {number + 1} ({domain}); the last good checkpoint is kept; "
        "lower training.optimizer.lr"
    )


def _recompute(model: UnifiedModel, batches: list[dict[Task, Batch]], settings: TrainingConfig) -> dict[Task, float]:
    """Losses of a step's batches at the parameters that it led to."""
    with torch.no_grad():
        found = [
            {task: compute_loss(model, batch, settings)[0].item() for task, batch in both.items()} for both in batches
        ]
    return {task: sum(losses[task] for losses in found) / len(found) for task in found[0]}


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

    def record(self) -> dict[str, Any]:
        """Means over the batches, for the log."""
        return {
            "domain": "+".join(sorted(set(self._domains))),
            **{name: value / len(self._domains) for name, value in self._sums.items()},
            "tokens": self.tokens,
            "padding": 1 - self.tokens / self.computed,
        }


def next_batch(sampler: TaskSampler, collator: Collator, task: Task) -> tuple[str, Batch]:
    """Draw and collate one batch."""
    domain, samples = sampler.next()
    if task is Task.EMBEDDING:
        return domain, collator.embedding(domain, samples)
    return domain, collator.reranking(domain, samples)
