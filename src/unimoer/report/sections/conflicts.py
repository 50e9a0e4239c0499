"""Cosine of the two tasks' gradients, beside what noise alone gives and the most that noise allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from unimoer.report import draw, text
from unimoer.report.section import Drawing, Section
from unimoer.report.study import StudyFolder
from unimoer.report.table import Table
from unimoer.schema import ConflictLine
from unimoer.schema.decision import ConflictMeans, Conflicts

_DIVERGING = LinearSegmentedColormap.from_list("conflict", ["#b35806", "#f1a340", "#f7f7f6", "#67a9cf", "#1f4e79"])
_PANELS: list[tuple[str, Callable[[ConflictLine], float | None]]] = [
    ("Between tasks", lambda line: line.cosine),
    ("Labels shuffled", lambda line: line.null_cosine),
]
Grid = NDArray[np.float64]
"""`[layers, steps]`; NaN where nothing was measured."""


def build(study: StudyFolder) -> Section | None:
    found = study.decision.gradient_conflicts if study.decision else None
    lines = [line for run in study.runs(study.shared) for line in study.conflicts(run)]
    drawings = [
        Drawing(
            "conflicts",
            "Gradient conflict by layer and step",
            "Cosine between the gradients of the two tasks during joint training; the same with one task's labels "
            "shuffled, that is noise; and the ceiling, the cosine that two noisy estimates of one gradient would show "
            "(geometric mean of both tasks' agreement between halves of a batch). One scale: a cell on the left means "
            "little where the others look alike. Orange is conflict. Grey: not measured, or an agreement below 0."
            + (" Means over seeds." if len(study.seeds) > 1 else ""),
            partial(_draw, lines),
        )
    ]
    if found is None and not lines:
        return None
    return Section(
        "Gradient conflict",
        paragraphs=[_summary(found)] if found else [],
        drawings=drawings if lines else [],
        folded=[_table(found)] if found else [],
    )


def _summary(found: Conflicts) -> str:
    sentences = [
        f"Mean cosine between the tasks' gradients over {text.plural(found.measurements, 'measurement')}: "
        f"{text.score(found.mean_cosine, signed=True)}; with shuffled labels "
        f"{text.score(found.null_cosine, signed=True)}; noise ceiling {text.score(found.noise_ceiling)}."
    ]
    if found.negative_share is not None:
        sentences.append(f"{text.percent(100 * found.negative_share, decimals=0)} of the cosines are negative.")
    if found.noise_ceiling is None:
        sentences.append("A task's gradient does not agree with itself between halves of a batch: nothing can be read.")
    elif found.noise_ceiling < 0.05:
        sentences.append("The ceiling is so close to 0 that the cosine can hardly be read.")
    elif found.mean_cosine_corrected is not None:
        sentences.append(f"Corrected for noise, the mean is {text.score(found.mean_cosine_corrected, signed=True)}.")
    sentences.append("Opposed gradients need not cost anything in the end, and aligned ones may: the scores decide.")
    return " ".join(sentences)


def _table(found: Conflicts) -> Table:
    rows: list[tuple[str, ConflictMeans]] = [("All", found), *((str(entry.layer), entry) for entry in found.by_layer)]
    return Table.of(
        "conflicts",
        "Gradient conflict by layer",
        rows,
        [
            ("Layer", lambda row: row[0]),
            ("Cosine", lambda row: text.score(row[1].mean_cosine, signed=True)),
            ("Shuffled", lambda row: text.score(row[1].null_cosine, signed=True)),
            ("Share negative", lambda row: text.decimal(row[1].negative_share, 2)),
            ("Agreement, emb.", lambda row: text.score(row[1].reliability_embedding)),
            ("Agreement, rer.", lambda row: text.score(row[1].reliability_reranking)),
            ("Ceiling", lambda row: text.score(row[1].noise_ceiling)),
            ("Corrected", lambda row: text.score(row[1].mean_cosine_corrected, signed=True)),
            ("Magnitudes", lambda row: text.score(row[1].magnitude_similarity)),
        ],
        rules=frozenset({1}),
    )


def _draw(lines: Sequence[ConflictLine]) -> Figure:
    steps = sorted({line.step for line in lines})
    layers = sorted({line.layer for line in lines}, key=lambda layer: (isinstance(layer, str), layer))
    grids = [(title, _mean(lines, layers, steps, value)) for title, value in _PANELS]
    ceiling = _ceiling(
        _mean(lines, layers, steps, lambda line: line.reliability_embedding),
        _mean(lines, layers, steps, lambda line: line.reliability_reranking),
    )
    shown = [(title, grid) for title, grid in [*grids, ("Ceiling", ceiling)] if np.isfinite(grid).any()]
    extreme = max((float(np.nanmax(np.abs(grid))) for _, grid in shown), default=0.0) or 1.0
    figure = Figure(figsize=(draw.WIDTH, 1.35 + 0.075 * max(len(layers), 10)), layout="constrained")
    panels = figure.subplots(1, max(1, len(shown)), sharey=True, squeeze=False)[0]
    for axes, (title, grid) in zip(panels, shown, strict=False):
        axes.set_facecolor(draw.UNMEASURED)
        values = np.ma.masked_invalid(grid)
        mesh = axes.pcolormesh(values, cmap=_DIVERGING, vmin=-extreme, vmax=extreme, lw=0, rasterized=True)
        axes.set_title(title, loc="left", fontsize=8)
        columns = draw.thin(len(steps), 4)
        axes.set_xticks([column + 0.5 for column in columns], [f"{steps[column]}" for column in columns])
        rows = draw.thin(len(layers), 7)
        axes.set_yticks([row + 0.5 for row in rows], [str(layers[row]) for row in rows])
        axes.set_xlabel("step")
        axes.spines[:].set_visible(False)
    if shown:
        bar = figure.colorbar(mesh, ax=list(panels), location="bottom", aspect=50, pad=0.02, shrink=0.9)
        bar.set_label("cosine of gradients", fontsize=7)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(6, symmetric=True)
        bar.update_ticks()
    panels[0].set_ylabel("layer")
    return figure


def _mean(
    lines: Sequence[ConflictLine],
    layers: Sequence[int | str],
    steps: Sequence[int],
    value: Callable[[ConflictLine], float | None],
) -> Grid:
    """Over seeds."""
    total, count = np.zeros((len(layers), len(steps))), np.zeros((len(layers), len(steps)))
    row, column = {layer: i for i, layer in enumerate(layers)}, {step: i for i, step in enumerate(steps)}
    for line in lines:
        found = value(line)
        if found is not None:
            total[row[line.layer], column[line.step]] += found
            count[row[line.layer], column[line.step]] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _ceiling(first: Grid, second: Grid) -> Grid:
    """Of means: single measurements cut at 0 would lift the ceiling. NaN where a mean is below 0."""
    known = (first >= 0) & (second >= 0)
    return np.sqrt(np.multiply(first, second, out=np.full_like(first, np.nan), where=known))
