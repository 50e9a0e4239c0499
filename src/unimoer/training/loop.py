"""The training loop: one readable pass from the first step to the last, or from the last checkpoint on."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from unimoer.config import ExperimentConfig, OptimizerConfig
from unimoer.data.collate import Collator
from unimoer.data.sampling import TaskSampler
from unimoer.errors import UserError
from unimoer.model.unified import UnifiedModel
from unimoer.tracking import Tracker
from unimoer.training.conflict import ConflictProbe
from unimoer.training.modes import schedule
from unimoer.training.objectives import Batch, compute_loss, token_counts
from unimoer.training.state import Counters, latest_state, load_state, save_state
from unimoer.types import Task, TrainingMode

Progress = Callable[[int, int, Counters, Task, str], None]
"""Called after every step: steps done, steps in all, totals so far, the step's task, a short description."""


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Factor on the peak rate at `step` of `total`: linear warm-up, then constant, linear or cosine."""
    warmup = max(1, round(config.warmup_ratio * total))
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def build_optimizer(model: UnifiedModel, config: OptimizerConfig, arm: TrainingMode) -> torch.optim.AdamW:
    """AdamW over what the arm's tasks reach. A specialist for embedding does not carry the score head."""
    task = arm.tasks[0] if len(arm.tasks) == 1 else None
    adapter: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.trainable(task).items():
        (head if name.startswith("head.") else adapter).append(parameter)
    groups = [{"params": adapter, "peak_lr": config.lr, "lr": config.lr}]
    if head:
        rate = config.head_lr or config.lr
        groups.append({"params": head, "peak_lr": rate, "lr": rate})
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)


def train(
    config: ExperimentConfig,
    arm: TrainingMode,
    model: UnifiedModel,
    samplers: dict[Task, TaskSampler],
    collator: Collator,
    folder: Path,
    *,
    tracker: Tracker,
    probe: ConflictProbe | None = None,
    progress: Progress | None = None,
) -> Counters:
    """Train one run in place, resuming from `folder/checkpoints` when there is something to resume.

    Raises:
        UserError: the loss or its gradient is no number. Nothing is saved then: the last checkpoint is a good one.
    """
    settings = config.training
    order = schedule(config, arm)
    optimizer = build_optimizer(model, settings.optimizer, arm)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    checkpoints = folder / "checkpoints"
    counters = Counters(task_steps={task.value: 0 for task in arm.tasks})
    found = latest_state(checkpoints)
    if found is not None:
        counters = load_state(found, model, optimizer, samplers)
    tracker.rewind(counters.step)
    if probe is not None:
        probe.rewind(counters.step)
    model.train()
    for step in range(counters.step, len(order)):
        started = time.perf_counter()
        task = order[step]
        factor = learning_rate(settings.optimizer, step, len(order))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.zero_grad(set_to_none=True)
        record: dict[str, float] = defaultdict(float)
        domains: list[str] = []
        tokens = computed = 0
        for _ in range(settings.optimizer.accumulation):
            domain, batch = next_batch(samplers[task], collator, task)
            loss, terms = compute_loss(model, batch, settings)
            if not torch.isfinite(loss):
                raise UserError(
                    f"{folder.name}: {task} loss is {loss.item()} at step {step + 1} ({domain}); "
                    f"the last good checkpoint is kept; lower training.optimizer.lr"
                )
            (loss / settings.optimizer.accumulation).backward()
            for name, value in {"loss": loss.item(), **terms}.items():
                record[name] += value / settings.optimizer.accumulation
            domains.append(domain)
            real, padded = token_counts(batch)
            tokens, computed = tokens + real, computed + padded
        norm = nn.utils.clip_grad_norm_(parameters, settings.optimizer.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError(
                f"{folder.name}: {task} gradient is {norm.item()} at step {step + 1} ({domain}); "
                f"the last good checkpoint is kept; lower training.optimizer.lr"
            )
        optimizer.step()
        elapsed = time.perf_counter() - started
        counters.step = step + 1
        counters.task_steps[task.value] += 1
        counters.tokens += tokens
        counters.computed_tokens += computed
        counters.seconds += elapsed
        tracker.log(
            {
                "step": counters.step,
                "task": task.value,
                "task_step": counters.task_steps[task.value],
                "domain": "+".join(sorted(set(domains))),
                **record,
                "lr": settings.optimizer.lr * factor,
                "grad_norm": norm.item(),
                "tokens": tokens,
                "padding": 1 - tokens / computed,
                "seconds": elapsed,
            }
        )
        if probe is not None and probe.is_due(counters.step):
            probe.measure(model, settings, counters.step)
        if progress is not None:
            progress(counters.step, len(order), counters, task, f"{task.value} loss {record['loss']:.3f}")
        if counters.step % settings.checkpoint_every == 0 and counters.step < len(order):
            save_state(checkpoints, model, optimizer, samplers, counters)
    model.eval()
    return counters


def next_batch(sampler: TaskSampler, collator: Collator, task: Task) -> tuple[str, Batch]:
    """Draw and collate one batch."""
    domain, samples = sampler.next()
    if task is Task.EMBEDDING:
        return domain, collator.embedding(domain, samples)
    return domain, collator.reranking(domain, samples)
