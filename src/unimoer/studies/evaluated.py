"""What `unimoer evaluate` has measured, with the intervals of a study: every system beside BM25, query by query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unimoer.config import BM25
from unimoer.evaluation.statistics import Sample
from unimoer.schema import Cell, EvaluationSummary
from unimoer.studies.cells import cell
from unimoer.studies.scores import read_per_query
from unimoer.types import Task

METRIC = "ndcg@10"
AVERAGE = "average"


class Row(NamedTuple):
    """One system on one collection, or on average over several."""

    collection: str
    task: Task
    system: str
    score: Cell
    to_bm25: Cell | None
    """None of BM25 itself, and where it was not evaluated."""
    queries: int
    metrics: dict[str, float]
    """Means of all metrics; empty for an average."""


def rows(root: Path, found: Sequence[EvaluationSummary]) -> list[Row]:
    """By task and collection, averages last. `root` holds a folder for each system, as `evaluate_checkpoint` writes it.

    Intervals are over queries: they speak of this one trained model.
    """
    samples = {(one.task, one.dataset, one.arm): _sample(root, one) for one in found}
    summaries = {(one.task, one.dataset, one.arm): one for one in found}
    return [
        row
        for task in Task
        for row in _of_task(
            task,
            {key[1:]: sample for key, sample in samples.items() if key[0] is task},
            {key[1:]: one for key, one in summaries.items() if key[0] is task},
        )
    ]


def _of_task(
    task: Task, samples: dict[tuple[str, str], Sample], summaries: dict[tuple[str, str], EvaluationSummary]
) -> Iterator[Row]:
    names = list(dict.fromkeys(name for name, _ in samples))
    systems = list(dict.fromkeys(system for _, system in samples))
    for name in names:
        for system in systems:
            one = summaries[name, system]
            yield _row(name, task, system, samples[name, system], samples.get((name, BM25)), one.queries, one.metrics)
    if len(names) < 2:
        return
    macro = {system: Sample.of({name: samples[name, system].terms[name] for name in names}) for system in systems}
    queries = sum(summaries[name, systems[0]].queries for name in names)
    for system in systems:
        yield _row(AVERAGE, task, system, macro[system], macro.get(BM25), queries, {})


def _row(
    name: str, task: Task, system: str, own: Sample, bm25: Sample | None, queries: int, metrics: dict[str, float]
) -> Row:
    difference = None if bm25 is None or system == BM25 else cell(own - bm25, [0])
    return Row(name, task, system, cell(own, [0]), difference, queries, metrics)


def _sample(root: Path, one: EvaluationSummary) -> Sample:
    folder = root / one.arm / "eval" / f"{one.suite}-{one.key}" / "final" / one.dataset / one.task
    scores = read_per_query(folder / "per_query.jsonl")
    return Sample.of({one.dataset: np.array([[scores[query][METRIC] for query in sorted(scores)]])})
