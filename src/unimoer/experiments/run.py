"""One run: train what is not trained yet, evaluate what is not evaluated yet, and say so in its folder."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from unimoer.config import ExperimentConfig, SimilarityConfig
from unimoer.data.collate import Collator
from unimoer.data.prepare import PreparedDomain, training_examples
from unimoer.data.sampling import SamplerConfig, TaskSampler
from unimoer.errors import UserError
from unimoer.evaluation.evaluate import rank, write_evaluation
from unimoer.evaluation.serving import Traffic, serving_costs
from unimoer.experiments.arms import arm_settings
from unimoer.experiments.plan import BM25, PlannedRun
from unimoer.experiments.progress import Progress
from unimoer.files import read_json, write_json, write_text
from unimoer.model.checkpoint import load_tensors, load_weights, save_model
from unimoer.model.unified import UnifiedModel
from unimoer.provenance import environment
from unimoer.tracking import JsonlWriter, Tracker
from unimoer.training.conflict import ConflictProbe
from unimoer.training.loop import train
from unimoer.training.pilots import Examples, fit_pilots, hold_out
from unimoer.training.state import Counters
from unimoer.types import Task, TrainingMode

PROBE_SEED_OFFSET = 1_000_003
"""The probe reads batches of its own: same data, other order."""


@dataclass
class RunContext:
    """What all runs of an experiment share."""

    config: ExperimentConfig
    domains: Mapping[str, PreparedDomain]
    device: torch.device
    progress: Progress

    @property
    def instructions(self) -> dict[str, str | None]:
        return {name: domain.config.instruction for name, domain in self.domains.items()}


def is_done(folder: Path) -> bool:
    """Whether a run finished, by its own word."""
    return (folder / "status.json").exists() and read_json(folder / "status.json").get("state") == "done"


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure the peak anew, where that can be done: runs share a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak resident memory of this process since `reset_peak_memory`, or peak allocated memory of the GPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def build_samplers(
    context: RunContext, mode: TrainingMode, seed: int, examples: Examples | None = None
) -> dict[Task, TaskSampler]:
    """One stream for each task of a mode: the same for every arm of a seed, unless it gives its own `examples`."""
    settings = context.config.training
    examples = training_examples(context.domains) if examples is None else examples
    documents = {name: sorted(context.domains[name].dataset.corpus) for name in examples}
    weights = {name: context.domains[name].config.weight for name in examples}
    families = {name: context.domains[name].dataset.families for name in examples}
    samplers = {}
    for task in mode.tasks:
        wanted = settings.embedding if task is Task.EMBEDDING else settings.reranking
        batches = context.config.steps(mode, task) * settings.optimizer.accumulation
        sampler = SamplerConfig(wanted.batch_size, wanted.negatives, round(wanted.random_until * batches))
        samplers[task] = TaskSampler(task, examples, documents, weights, sampler, seed, families)
    return samplers


def build_probe(context: RunContext, mode: TrainingMode, seed: int, collator: Collator, folder: Path) -> ConflictProbe:
    """The gradient probe of a joint run, on groups with mined negatives."""
    settings = context.config.training
    examples = training_examples(context.domains)
    documents = {name: sorted(context.domains[name].dataset.corpus) for name in examples}
    weights = {name: context.domains[name].config.weight for name in examples}
    families = {name: context.domains[name].dataset.families for name in examples}
    negatives = {Task.EMBEDDING: settings.embedding.negatives, Task.RERANKING: settings.reranking.negatives}
    samplers = {
        task: TaskSampler(
            task,
            examples,
            documents,
            weights,
            SamplerConfig(settings.probe.batch_size, negatives[task], 0),
            seed + PROBE_SEED_OFFSET,
            families,
        )
        for task in mode.tasks
    }
    return ConflictProbe(settings.probe.every, samplers, collator, JsonlWriter(folder / "gradient_conflicts.jsonl"))


class _StepReport:
    """Feeds the clock and the progress line, step by step."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title
        self._last: float = time.perf_counter()
        self._first = True

    def __call__(self, step: int, total: int, counters: Counters, task: Task, detail: str) -> None:
        now = time.perf_counter()
        if self._first:
            # Steps that an earlier call of the program has done.
            for name, done in counters.task_steps.items():
                self.progress.clock.skip(f"train {name}", done - (name == task.value))
            self._first = False
        self.progress.clock.spent(f"train {task}", 1, now - self._last)
        self._last = now
        self.progress.update(self.title, f"step {step}/{total} {detail}")


def train_run(context: RunContext, run: PlannedRun, mode: TrainingMode, model: UnifiedModel, folder: Path) -> None:
    """Train to the end, or do nothing if `checkpoints/final` is there."""
    final = folder / "checkpoints" / "final"
    clock = context.progress.clock
    config = context.config
    steps = {task: config.steps(mode, task) for task in mode.tasks}
    if final.exists():
        load_weights(model, load_tensors(final / "adapter.safetensors"), final / "adapter.safetensors")
        for task, count in steps.items():
            clock.skip(f"train {task}", count)
        _drop_steps(folder)
        return
    collator = Collator(
        model.prompter,
        {name: domain.dataset for name, domain in context.domains.items()},
        instructions=context.instructions,
        padding=config.model.padding,
        multiple=config.training.pad_to_multiple,
        head=config.model.reranking.head,
    )
    joint = len(mode.tasks) > 1 and config.training.probe.every > 0
    probe = build_probe(context, mode, run.seed, collator, folder) if joint else None
    examples: Examples = training_examples(context.domains)
    held_out: Examples = {}
    router = model.config.adapter.router
    if isinstance(router, SimilarityConfig):
        examples, held_out = hold_out(examples, router.pilot_queries)
    tracker = Tracker(folder, config.trackers)
    torch.manual_seed(run.seed)
    try:
        counters = train(
            config,
            mode,
            model,
            build_samplers(context, mode, run.seed, examples),
            collator,
            folder,
            tracker=tracker,
            probe=probe,
            progress=_StepReport(context.progress, f"{run.arm} seed {run.seed}: training"),
            warn=lambda message: context.progress.note(f"{run.arm} seed {run.seed}, {message}"),
        )
    finally:
        tracker.close()
    if held_out:
        context.progress.update(f"{run.arm} seed {run.seed}", "fitting pilots")
        fit_pilots(model, held_out, collator, config.training, run.seed)
    write_json(folder / "training.json", training_summary(context, mode, model, counters))
    save_model(model, final)
    _drop_steps(folder)


def _drop_steps(folder: Path) -> None:
    """Resumable checkpoints are of no use beside the final one, nor is what a kill left half written."""
    for pattern in ("step-*", ".step-*", ".final.*"):
        for leftover in (folder / "checkpoints").glob(pattern):
            shutil.rmtree(leftover)


def training_summary(
    context: RunContext, mode: TrainingMode, model: UnifiedModel, counters: Counters
) -> dict[str, Any]:
    """What training took; part of the run's status."""
    task = mode.tasks[0] if len(mode.tasks) == 1 else None
    return {
        "steps": counters.step,
        "tokens": counters.tokens,
        "tokens_per_second": counters.tokens / counters.seconds if counters.seconds else 0.0,
        "padding_waste": 1 - counters.tokens / counters.computed_tokens if counters.computed_tokens else 0.0,
        "train_seconds": counters.seconds,
        "peak_memory_mb": peak_memory_mb(context.device),
        "trainable_parameters": sum(parameter.numel() for parameter in model.trainable(task).values()),
    }


def evaluate_domains(
    context: RunContext, run: PlannedRun, model: UnifiedModel | None, folder: Path, spent: Callable[[float], None]
) -> None:
    """Evaluate on every domain and task that has no result yet; `spent` is told the seconds of each."""
    config = context.config
    for name, domain in context.domains.items():
        if not domain.config.evaluate:
            continue
        queries = {query: domain.dataset.queries[query] for query in domain.test}
        for task in run.tasks:
            target = folder / "eval" / name / task.value
            kind = f"evaluate {task}" if model is not None else "bm25"
            if (target / "metrics.json").exists():
                context.progress.clock.skip(kind, 1)
                continue
            title = f"{run.arm} seed {run.seed}: {task} on {name}"
            context.progress.update(title, f"{len(queries)} queries")
            started = time.perf_counter()
            ranking = rank(
                model,
                domain.dataset,
                queries,
                domain.candidates,
                task,
                depth=config.evaluation.rerank_depth,
                instruction=domain.config.instruction,
                batch_tokens=config.evaluation.batch_tokens,
                report=partial(_report_texts, context.progress, title),
            )
            write_evaluation(
                target,
                ranking,
                domain.test,
                dataset=domain.dataset,
                task=task,
                arm=run.arm,
                seed=run.seed,
                candidates=domain.candidates,
                depth=config.evaluation.rerank_depth,
            )
            elapsed = time.perf_counter() - started
            context.progress.clock.spent(kind, 1, elapsed)
            spent(elapsed)


def measure_serving(context: RunContext, run: PlannedRun, model: UnifiedModel) -> dict[str, float]:
    """What the trained model costs as it would be served; it cannot be trained or evaluated afterwards."""
    settings = context.config.evaluation
    context.progress.update(f"{run.arm} seed {run.seed}", "timing single requests")
    traffic = [
        Traffic(domain.dataset, sorted(domain.test), domain.candidates, domain.config.instruction)
        for domain in context.domains.values()
        if domain.config.evaluate
    ]
    return serving_costs(
        model.for_inference(),
        traffic,
        run.tasks,
        requests=settings.latency_requests,
        depth=settings.rerank_depth,
    )


def check_same_run(context: RunContext, run: PlannedRun, folder: Path) -> None:
    """Refuse to go on where something else began.

    Raises:
        UserError: the folder holds a run of another configuration, or one made on other data.
    """
    if not (folder / "env.json").exists():
        return
    env = read_json(folder / "env.json")
    if env.get("config_hash") != context.config.run_hash(run.arm, run.seed):
        raise UserError(f"{folder}: holds a run of another configuration; choose another --output, or remove it")
    found = {name: domain.dataset.fingerprint for name, domain in context.domains.items()}
    changed = [name for name, fingerprint in found.items() if env.get("data", {}).get(name) != fingerprint]
    if changed:
        raise UserError(f"{folder}: was begun on other data of '{changed[0]}'; choose another --output, or remove it")


def _report_texts(progress: Progress, title: str, done: int, total: int) -> None:
    progress.update(title, f"{done}/{total} texts")


def execute(context: RunContext, run: PlannedRun, folder: Path) -> None:
    """Bring one run to its end from wherever it stands."""
    config = context.config
    reset_peak_memory(context.device)
    folder.mkdir(parents=True, exist_ok=True)
    check_same_run(context, run, folder)
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_json(
        folder / "env.json",
        {
            **environment(str(context.device)),
            "seed": run.seed,
            "config_hash": config.run_hash(run.arm, run.seed),
            "data": {name: domain.dataset.fingerprint for name, domain in context.domains.items()},
        },
    )
    # Evaluations that an earlier call of the program has done took their time too.
    earlier = read_json(folder / "status.json") if (folder / "status.json").exists() else {}
    status: dict[str, Any] = {"state": "running", "arm": run.arm, "seed": run.seed}
    status["eval_seconds"] = earlier.get("eval_seconds", 0.0)
    write_json(folder / "status.json", status)
    model = None
    if run.arm != BM25:
        context.progress.update(f"{run.arm} seed {run.seed}", "loading the model")
        settings, described = (config, config.model) if run.mode is None else arm_settings(config, run.arm)
        model = UnifiedModel(described, context.device, seed=run.seed)
        if run.mode is not None:
            # What the arm makes of the configuration: its experts' ranks, its router, its own settings.
            own = {
                "arm": run.arm,
                "mode": run.mode.value,
                "model": described.model_dump(mode="json"),
                "training": settings.training.model_dump(mode="json"),
            }
            write_text(folder / "arm.yaml", yaml.safe_dump(own, sort_keys=False))
    if run.mode is not None and model is not None:
        train_run(replace(context, config=settings), run, run.mode, model, folder)
        status |= read_json(folder / "training.json")

    def spent(seconds: float) -> None:
        status["eval_seconds"] += seconds
        write_json(folder / "status.json", status)

    evaluate_domains(context, run, model, folder, spent)
    # Training may have been another process: its peak counts too.
    peak = max(peak_memory_mb(context.device), status.get("peak_memory_mb", 0.0))
    if run.mode is not None and model is not None:
        status["serving"] = measure_serving(context, run, model)
    write_json(folder / "status.json", {**status, "state": "done", "peak_memory_mb": peak})
