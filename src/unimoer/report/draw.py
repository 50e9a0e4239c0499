"""What the figures share: colours, style, rows with intervals. Nothing here touches files or global settings.

Specialist and shared LoRA have the same two colours everywhere, from the palette of Okabe and Ito, which stays apart
under the common colour-vision deficiencies; markers and dashes differ as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unimoer.report.table import Number
from unimoer.types import Task

INK = "#1b1f24"
PAPER = "#fffffe"
"""White in a file, and still a colour that the page can tell from any other white."""
MUTED = "#6a737d"
GRID = "#dfe3e8"
SPECIALIST = "#0072b2"
SHARED = "#d55e00"
UNDETECTABLE = "#ebe4d3"
UNMEASURED = "#e9ebee"
SERIES = (SHARED, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#a65628", "#4d9085", "#b2ab3c")
MARKERS = "so^vD<>Pp"
WIDTH = 4.4

THEMED = {
    INK: "--ink",
    PAPER: "--surface",
    MUTED: "--muted",
    GRID: "--rule",
    SPECIALIST: "--specialist",
    SHARED: "--joint",
    UNDETECTABLE: "--undetectable",
    UNMEASURED: "--missing",
}
"""Colour in a figure -> the page's variable that replaces it. No colour map may contain one of these colours."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}

FILLED = "A filled marker's interval excludes 0, an open one's does not; an arrow leaves the axis."
BAND = "Shaded: effects too small for this study to detect with a power of 80%."


def row_panels(rows: Sequence[str], row_height: float, margin: float) -> tuple[Figure, Sequence[Axes]]:
    """A panel for each task with the same rows, the first of them set apart; heights in inches."""
    # The gap keeps the last tick label of one panel off the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.05)
    figure = Figure(figsize=(WIDTH, margin + row_height * len(rows)), layout=layout)
    panels = figure.subplots(1, len(Task), sharey=True)
    for axes, task in zip(panels, Task, strict=True):
        axes.set_title(task.capitalize(), loc="left")
        axes.set_ylim(len(rows) - 0.45, -0.6)
        axes.set_yticks(range(len(rows)), rows)
        axes.axhline(0.5, color=MUTED, lw=0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    return figure, panels


def span(cells: Iterable[Number | None], *include: float, medians: float = 4.0) -> tuple[float, float]:
    """Ends of an axis of differences: all intervals and 0; nothing beyond so many medians may flatten the others."""
    ends = np.array([end for cell in cells if cell for end in (*cell.ci95, cell.mean) if end is not None] or [0.0])
    reach = max(medians * float(np.median(np.abs(ends))), 1e-3, *(1.5 * abs(value) for value in include))
    low, high = (min(0.0, *include, max(ends.min(), -reach)), max(0.0, *include, min(ends.max(), reach)))
    # Intervals of no width, where a study is too small to tell anything, still need an axis.
    margin = max(0.06 * (high - low), 1e-3)
    return float(low - margin), float(high + margin)


def whisker(
    axes: Axes,
    row: float,
    cell: Number,
    limits: tuple[float, float],
    colour: str = INK,
    marker: str = "o",
    size: float = 4.0,
    always_filled: bool = False,
) -> None:
    """A number with its interval, along x; what leaves the axis ends in an arrow instead of being hidden."""
    low, high = cell.ci95
    clear = always_filled
    if low is not None and high is not None:
        clear = clear or low > 0 or high < 0
        ends = np.clip([low, high], *limits)
        axes.plot(ends, [row] * 2, color=colour, lw=1.2, solid_capstyle="butt", zorder=3)
        for edge, outside, arrow in ((ends[0], low < limits[0], "<"), (ends[1], high > limits[1], ">")):
            if outside:
                axes.plot(edge, row, arrow, color=colour, ms=4, mew=0, clip_on=False, zorder=3)
    if cell.mean is not None and limits[0] <= cell.mean <= limits[1]:
        face = colour if clear else PAPER
        axes.plot(cell.mean, row, marker, mfc=face, mec=colour, ms=size, mew=0.9, zorder=4)


def undetectable(axes: Axes, row: float, mde: float | None, limits: tuple[float, float]) -> None:
    """Shades what lies within the minimum detectable effect."""
    if mde is not None:
        low, high = np.clip([-mde, mde], *limits)
        axes.barh(row, high - low, left=low, height=0.66, color=UNDETECTABLE, lw=0, zorder=0)


def marker(colour: str, shape: str, filled: bool = True, line: bool = True) -> Line2D:
    """A legend's entry."""
    face = colour if filled else PAPER
    return Line2D([], [], color=colour, lw=1.2 if line else 0, marker=shape, ms=4, mfc=face, mec=colour, mew=0.9)


def signs(shaded: bool) -> dict[str, Any]:
    """Legend entries that explain filled and open markers, and the shading where there is any."""
    entries: dict[str, Any] = {
        "filled: excludes 0": marker(INK, "o", line=False),
        "open: includes 0": marker(INK, "o", filled=False, line=False),
    }
    return {**entries, "undetectable": Patch(color=UNDETECTABLE, lw=0)} if shaded else entries


def legend(figure: Figure, handles: Mapping[str, Any], columns: int | None = None) -> None:
    """Above all panels; in one line unless `columns` says otherwise."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=columns or len(handles),
        columnspacing=1.1,
        handletextpad=0.4,
        handlelength=1.5,
        borderpad=0.2,
    )


def thin(length: int, most: int) -> list[int]:
    """At most about `most` evenly spaced indices, from 0."""
    return list(range(0, length, max(1, -(-length // most))))
