"""Scores of every system on every collection, beside BM25, a random order and what the candidates allow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unimoer.report import draw, text
from unimoer.report.section import Drawing, Section
from unimoer.report.study import BM25, RANDOM, UNTRAINED, StudyFolder
from unimoer.report.table import Cell, Table, scored
from unimoer.schema.results import Ceilings, SystemScore, TaskScores
from unimoer.types import Task


def build(study: StudyFolder) -> Section | None:
    if not study.variants:
        return None
    first, *others = study.variants
    scores = study.results.scores[first]
    suite = study.results.plan.declared.suites.get(study.results.suite)
    candidates = (
        f" In reranking every system orders the same {suite.depth} candidates of a query, from {suite.first_stage}."
        if suite
        else ""
    )
    return Section(
        "Scores",
        paragraphs=[
            f"{study.metric_label} on the suite {study.results.suite}; the average is over collections." + candidates
        ],
        drawings=[
            Drawing(
                "scores",
                "Scores by collection",
                f"{study.metric_label} with 95% intervals. Tall ticks: the best that any order of the reranking "
                "candidates could reach. Systems share their queries, so intervals of two systems may overlap while "
                "their difference is clear.",
                partial(_draw, study),
            )
        ],
        tables=[
            score_table(study, task, found, "scores", study.results.ceilings, f", {first}" if first else "")
            for task, found in scores.items()
        ],
        folded=[
            *(
                score_table(study, task, found, f"scores_{variant}", note=f", {variant}")
                for variant in others
                for task, found in study.results.scores[variant].items()
            ),
            *(_metrics(study, task, found) for task, found in scores.items()),
        ],
    )


def score_table(
    study: StudyFolder,
    task: Task,
    scores: TaskScores,
    prefix: str,
    ceilings: Ceilings | None = None,
    note: str = "",
    suite: str | None = None,
) -> Table:
    """Systems as rows, collections and their average as columns; of the deciding suite where none is named."""
    names = sorted(scores.datasets)
    systems, given = study.systems(task, scores), task == Task.RERANKING
    by_column: list[Mapping[str, SystemScore]] = [*(scores.datasets[name] for name in names), scores.macro]
    rows: list[list[Cell | str]] = [
        [
            study.given(suite or study.results.suite) if given and system == BM25 else study.label(system),
            *(scored(found[system].score) if system in found else text.MISSING for found in by_column),
            scored(scores.macro[system].to_bm25, signed=True) if system in scores.macro else text.MISSING,
        ]
        for system in systems
    ]
    rules = {sum(system in (BM25, RANDOM, UNTRAINED) for system in systems)} - {0, len(rows)}
    if task == Task.RERANKING and ceilings and ceilings.datasets:
        rules.add(len(rows))
        for key, label in ((study.metric, "Ceiling: perfect order"), ("recall", "Recall of the candidates")):
            limits = [*(ceilings.datasets.get(name, {}) for name in names), ceilings.macro]
            rows.append([label, *(text.score(limit.get(key)) for limit in limits), ""])
    return Table(
        re.sub(r"[^\w.-]+", "-", f"{prefix}_{task}"),  # names a file, and variants are named freely
        f"{task.capitalize()}: {study.metric_label} with 95% intervals{note}",
        ["System", *names, "Average", "To BM25"],
        rows,
        rules=frozenset(rules),
        notes="To BM25: the difference of averages, paired by query.",
    )


def _metrics(study: StudyFolder, task: Task, scores: TaskScores) -> Table:
    systems = [system for system in study.systems(task, scores) if system in scores.macro]
    metrics = sorted({metric for system in systems for metric in scores.macro[system].metrics})
    return Table(
        f"metrics_{task}",
        f"{task.capitalize()}: all metrics, averaged over collections",
        ["System", *map(text.metric_label, metrics)],
        [
            [study.label(system), *(text.score(scores.macro[system].metrics.get(metric)) for metric in metrics)]
            for system in systems
        ],
    )


def _draw(study: StudyFolder) -> Figure:
    scores = study.results.scores[study.variants[0]]
    names = sorted({name for found in scores.values() for name in found.datasets})
    figure, panels = draw.row_panels(["Average", *names], row_height=0.38, margin=1.15)
    handles: dict[str, Any] = {}
    for axes, task in zip(panels, Task, strict=True):
        styles: dict[str | None, tuple[str, float, str, str]] = {
            study.specialist(task): ("specialist", -0.2, draw.SPECIALIST, "o"),
            study.shared: ("joint", 0.0, draw.SHARED, "s"),
            BM25: ("BM25", 0.2, draw.MUTED, "x"),
        }
        for row, name in enumerate([None, *names]):
            if task not in scores:
                continue
            found = scores[task].macro if name is None else scores[task].datasets.get(name, {})
            for system, (label, offset, colour, shape) in styles.items():
                if system in found:
                    draw.whisker(axes, row + offset, found[system].score, (0, 1), colour, shape, always_filled=True)
                    handles[label] = draw.marker(colour, shape)
            for system, offset, shape in ((UNTRAINED, -0.12, "D"), (RANDOM, 0.12, "+")):
                mean = found[system].score.mean if system in found else None
                if mean is not None:
                    handles[system] = Line2D([], [], lw=0, marker=shape, mfc="none", mec=draw.MUTED, ms=3.8, mew=0.9)
                    axes.plot(mean, row + offset, shape, mfc="none", mec=draw.MUTED, ms=3.8, mew=0.9)
            ceilings = study.results.ceilings
            limit = (ceilings.macro if name is None else ceilings.datasets.get(name, {})).get(study.metric)
            if task == Task.RERANKING and limit is not None:
                axes.plot([limit] * 2, [row - 0.34, row + 0.34], color=draw.INK, lw=1.4)
                handles["ceiling"] = Line2D([], [], color=draw.INK, lw=0, marker="|", ms=7, mew=1.4)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.set_xlabel(study.metric_label)
    draw.legend(figure, handles, columns=3)
    return figure
