"""Evaluate one system on the suites of a specification: what is there already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from unimoer.config import RunSpec, SuiteSpec
from unimoer.evaluation.evaluate import rank, write_evaluation
from unimoer.evaluation.first_stage import is_shared
from unimoer.evaluation.suites import Collection
from unimoer.model.unified import UnifiedModel
from unimoer.runs.data import bm25, candidates, suite_data
from unimoer.runs.events import Event, Watch
from unimoer.runs.folder import expected
from unimoer.types import Run, Task

REFERENCE = "reference"
"""Kind of work of a system that needs no model."""


def evaluate(
    spec: RunSpec,
    folder: Path,
    load: Callable[[str], UnifiedModel | str],
    watch: Watch,
    spent: Callable[[float], None],
) -> None:
    """Bring a run's scores to their end from wherever they stand.

    `load` gives the system at a moment, and is asked only where something is missing; `spent` is told the seconds of
    each evaluation.
    """
    loaded: tuple[str, UnifiedModel | str] | None = None
    suites = {suite.name: suite for suite in spec.suites}
    for name, moment, step, dataset, task, target in expected(folder, spec):
        kind = f"evaluate {task}" if spec.train is not None or spec.model is not None else REFERENCE
        if (target / "metrics.json").exists():
            watch(Event("skip", work=kind, units=1))
            continue
        if loaded is None or loaded[0] != moment:
            # One at a time: two copies of a large base may not fit beside each other.
            loaded = None
            loaded = (moment, load(moment))
        collection = suite_data(suites[name].suite)[dataset]
        title = f"{spec.arm} seed {spec.seed}: {task} on {dataset}" + ("" if step is None else f" at step {step}")
        watch(Event("say", title, f"{len(collection.qrels)} queries"))
        started = time.perf_counter()
        _one(spec, suites[name], collection, task, step, loaded[1], target, watch, title)
        elapsed = time.perf_counter() - started
        watch(Event("spent", work=kind, units=1, seconds=elapsed))
        spent(elapsed)


def _one(
    spec: RunSpec,
    suite: SuiteSpec,
    collection: Collection,
    task: Task,
    step: int | None,
    system: UnifiedModel | str,
    target: Path,
    watch: Watch,
    title: str,
) -> None:
    def report(done: int, total: int) -> None:
        watch(Event("say", title, f"{done}/{total} texts"))

    depth = suite.suite.rerank_depth
    offered: Run = bm25(suite.suite, collection.name)
    if task is Task.RERANKING and is_shared(suite.suite.first_stage):
        offered = candidates(suite.suite, collection.name)
    elif task is Task.RERANKING and isinstance(system, UnifiedModel):
        offered = rank(system, collection, {}, Task.EMBEDDING, depth=depth, batch_tokens=spec.batch_tokens)
    found = rank(system, collection, offered, task, depth=depth, batch_tokens=spec.batch_tokens, report=report)
    write_evaluation(
        target,
        found,
        collection,
        task=task,
        arm=spec.arm,
        seed=spec.seed,
        suite=suite.name,
        key=suite.key(spec.key, spec.train.model if spec.train is not None else spec.model),
        step=step,
        first_stage=suite.suite.first_stage,
        candidates=offered,
        depth=depth,
    )
