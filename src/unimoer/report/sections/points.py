"""Curves and grids: scores, interference and recovery over a coordinate such as steps, layers or parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from unimoer.report import draw, text
from unimoer.report.section import Drawing, Section
from unimoer.report.study import BM25, RANDOM, StudyFolder
from unimoer.report.table import Number, Table, percentage, scored
from unimoer.schema.results import Point, Points
from unimoer.types import Task

_LOGARITHMIC = ("steps", "trainable", "total", "rank")
_COORDINATES = {
    "steps": "steps of a task",
    "trainable": "trainable parameters",
    "total": "parameters of base and adapter",
    "rank": "rank",
}
_SIZE = re.compile(r"[-_]\d[\w.]*$")
"""What a name ends in where arms or variants are points of one line: `embedding_rank_16`, `qwen3-0.6b`."""
Series = dict[str, list[Point]]
"""Label -> points by their coordinate."""
Value = Callable[[Point], Number | None]


def build(study: StudyFolder) -> Section | None:
    found = study.results.points
    if found is None or not found.points:
        return None
    tasks = [task for task in Task if any(point.task == task for point in found.points)]
    paragraphs = [paragraph for task in tasks if (paragraph := _summary(found, task))]
    return Section(
        f"Scores and interference over {_COORDINATES.get(found.x, found.x)}",
        paragraphs=paragraphs,
        drawings=[
            Drawing(
                "points",
                f"Scores and interference over {_COORDINATES.get(found.x, found.x)}",
                f"{study.metric_label} averaged over collections, then the share of the specialist's score that an arm "
                "loses (TIR)"
                + (", then the share of that loss that it wins back" if _recovers(found) else "")
                + "; all with 95% intervals that are not corrected for the number of points. Dashed on top: BM25. "
                f"Dashed in the middle: the lines of the criterion. {draw.BAND}",
                partial(_draw, study, found),
            )
        ],
        tables=[_table(study, found, task) for task in tasks],
        brief=[_brief(study, found, tasks), *paragraphs],
    )


def series(study: StudyFolder, found: Points, task: Task, *, lines: bool = False) -> Series:
    """Points of one task by arm; where an arm has several at one place, by the coordinates that tell them apart.

    With `lines`, arms whose names differ in a size alone are one series; so are variants, and those of two bases two.
    """
    points = [point for point in found.points if point.task == task]
    others = {name: {point.x[name] for point in points if name in point.x} for point in points for name in point.x}
    others.pop(found.x, None)
    apart: list[str] = []
    for name in sorted(others, key=lambda name: (len(others[name]), name)):
        if len({_key(point, apart, found.x) for point in points}) == len(points):
            break
        if len(others[name]) > 1:
            apart.append(name)
    named = len({_key(point, apart, found.x) for point in points}) < len(points)
    variants = {point.variant for point in points}
    several = 1 < len({_SIZE.sub("", variant) for variant in variants}) < len(variants)
    grouped: Series = {}
    for point in sorted(points, key=lambda point: (point.x.get(found.x, 0.0), point.step or 0)):
        words = [f"{text.compact(point.x[name])} {name}" for name in apart if name in point.x]
        words += [point.variant] if named and point.variant else []
        words += [_SIZE.sub("", point.variant)] if lines and several and not named else []
        arm = "specialist" if point.arm == study.specialist(task) else study.label(point.arm)
        arm = _SIZE.sub("", arm) if lines else arm
        grouped.setdefault(", ".join([arm, *words]), []).append(point)
    return grouped


def references(study: StudyFolder, task: Task) -> list[Point]:
    """BM25 and a random order, which have no place along x."""
    tables = [found[task].macro for found in study.results.scores.values() if task in found]
    return [
        Point(variant="", arm=name, task=task, seeds=[], score=tables[0][name].score)
        for name in (BM25, RANDOM)
        if tables and name in tables[0]
    ]


def _key(point: Point, apart: Sequence[str], x: str) -> tuple[Any, ...]:
    return point.arm, point.x.get(x, point.variant), *(point.x.get(name) for name in apart)


def _recovers(found: Points) -> bool:
    return any(point.recovery and point.recovery.mean is not None for point in found.points)


def _summary(found: Points, task: Task) -> str:
    """How many intervals lie on either side, of those that there are."""
    points = [point for point in found.points if point.task == task]
    sentences = []
    for what, cells in (
        ("TIR is above 0 (sharing costs)", [point.tir for point in points if point.tir]),
        ("The score is above BM25's", [point.to_bm25 for point in points if point.to_bm25]),
    ):
        above = sum(cell.low is not None and cell.low > 0 for cell in cells)
        below = sum(cell.high is not None and cell.high < 0 for cell in cells)
        if cells:
            sentences.append(f"{what} at {above} of {text.plural(len(cells), 'point')}, below at {below}")
    return f"{task.capitalize()}: {'. '.join(sentences)}, by whole intervals, uncorrected." if sentences else ""


def _table(study: StudyFolder, found: Points, task: Task) -> Table:
    points = [point for points in series(study, found, task).values() for point in points]
    known = references(study, task)
    coordinates = list(dict.fromkeys([found.x, *(name for point in points for name in point.x)]))
    variants = any(point.variant for point in points)

    def coordinate(name: str) -> Callable[[Point], str]:
        return lambda point: text.compact(point.x[name]) if name in point.x else text.MISSING

    return Table.of(
        f"points_{task}",
        f"{task.capitalize()} over {found.x}",
        [*points, *known],
        [
            ("Arm", lambda point: study.label(point.arm)),
            *([("Variant", lambda point: point.variant)] if variants else []),
            *((name.capitalize(), coordinate(name)) for name in coordinates),
            ("Seeds", lambda point: str(len(point.seeds)) if point.seeds else text.MISSING),
            (study.metric_label, lambda point: scored(point.score)),
            ("TIR", lambda point: percentage(point.tir)),
            ("MDE", lambda point: text.decimal(point.mde, 1)),
            ("Recovery", lambda point: percentage(point.recovery, 0)),
            ("To BM25", lambda point: scored(point.to_bm25, True)),
        ],
        text_columns=1 + variants,
        rules=frozenset({len(points)}) if known else frozenset(),
        notes="With 95% intervals. TIR: against the specialist of the same variant and step. MDE: the smallest ratio "
        "that would be detected with a power of 80%. To BM25: score − BM25's.",
    )


def _brief(study: StudyFolder, found: Points, tasks: Sequence[Task]) -> Table:
    """Both tasks side by side, without intervals: they are in the report."""
    places: dict[tuple[str, str], dict[Task, Point]] = {}
    for task in tasks:
        for label, points in series(study, found, task).items():
            for point in points:
                place = text.compact(point.x[found.x]) if found.x in point.x else point.variant
                places.setdefault((label, place), {})[task] = point
    for task in tasks:
        for point in references(study, task):
            places.setdefault((study.label(point.arm), text.MISSING), {})[task] = point

    def score(task: Task) -> Callable[[tuple[str, str]], str]:
        return lambda place: text.score(places[place][task].score.mean) if task in places[place] else text.MISSING

    def ratio(task: Task) -> Callable[[tuple[str, str]], str]:
        ratios = {place: points[task].tir for place, points in places.items() if task in points}
        return lambda place: text.decimal(cell.mean, 1, True) if (cell := ratios.get(place)) else text.MISSING

    return Table.of(
        "brief_points",
        f"{study.metric_label}, averaged over collections",
        places,
        [
            ("arm", lambda place: place[0]),
            (found.x, lambda place: place[1]),
            *((str(task), score(task)) for task in tasks),
            *((f"TIR % {task[:3]}.", ratio(task)) for task in tasks),
        ],
    )


def _draw(study: StudyFolder, found: Points) -> Figure:
    rows: list[tuple[str, Value]] = [(study.metric_label, lambda point: point.score)]
    if any(point.tir for point in found.points):
        rows.append(("TIR, %", lambda point: point.tir))
    if _recovers(found):
        rows.append(("recovery, %", lambda point: point.recovery))
    layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.04)
    figure = Figure(figsize=(draw.WIDTH, 1.05 + 1.5 * len(rows)), layout=layout)
    grid = figure.subplots(len(rows), len(Task), sharex=True, sharey="row", squeeze=False)
    by_task = {task: series(study, found, task, lines=True) for task in Task}
    styles = _styles(study, list(dict.fromkeys(label for lines in by_task.values() for label in lines)))
    ruler = _Ruler(found)
    criterion = study.results.criterion
    handles: dict[str, Any] = {
        label: Line2D([], [], color=colour, marker=shape, ms=3.5, lw=1.2) for label, (colour, shape) in styles.items()
    }
    for panels, (name, value) in zip(grid, rows, strict=True):
        for axes, task in zip(panels, Task, strict=True):
            for index, (label, points) in enumerate(by_task[task].items()):
                shift = index - (len(by_task[task]) - 1) / 2
                _line(axes, [(ruler.place(point, shift), value(point)) for point in points], *styles[label])
            if name == study.metric_label:
                axes.set_title(task.capitalize(), loc="left")
                _note_random(axes, study, task)
                if _draw_bm25(axes, study, task):
                    handles["BM25"] = Line2D([], [], color=draw.INK, lw=0.9, ls=(0, (4, 2)))
                continue
            axes.axhline(0, color=draw.MUTED, lw=0.8, zorder=1)
            if name.startswith("TIR"):
                for line in (criterion.fail_below, criterion.pass_at):
                    axes.axhline(line, color=draw.INK, lw=0.6, ls=(0, (3, 2)), zorder=1)
                if _draw_undetectable(axes, ruler, [point for points in by_task[task].values() for point in points]):
                    handles["undetectable"] = Patch(color=draw.UNDETECTABLE, lw=0)
        if name != study.metric_label:
            mde = max((point.mde for point in found.points if point.mde is not None), default=0.0)
            include = (criterion.pass_at, mde, -mde) if name.startswith("TIR") else (100.0,)
            panels[0].set_ylim(*draw.span((value(point) for point in found.points), *include, medians=20.0))
        panels[0].set_ylabel(name)
        for axes in panels:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.grid(axis="y")
    for axes in grid[-1]:
        ruler.label(axes)
    draw.legend(figure, handles, columns=3 if max(map(len, handles)) <= 22 else 2)
    return figure


class _Ruler:
    """Places points along x: by their coordinate, or by variant where it is not a number of every point."""

    def __init__(self, found: Points) -> None:
        self.x = found.x
        values = sorted({point.x[found.x] for point in found.points if found.x in point.x})
        self.numeric = all(found.x in point.x for point in found.points)
        variants = list(dict.fromkeys(point.variant for point in found.points))
        self.ticks: dict[float, str] = {value: text.compact(value) for value in values}
        if not self.numeric:
            self.ticks = {float(index): variant or "–" for index, variant in enumerate(variants)}
        self.variants = {variant: float(index) for index, variant in enumerate(variants)}
        self.logarithmic = self.numeric and found.x in _LOGARITHMIC and values[0] > 0

    def place(self, point: Point, shift: float = 0.0) -> float:
        """`shift` sets series apart that share a coordinate, so that their intervals do not cover each other."""
        value = point.x[self.x] if self.numeric else self.variants[point.variant]
        if self.logarithmic:
            return float(value * (max(self.ticks) / min(self.ticks)) ** (0.012 * shift))
        return value + 0.012 * shift * (max(self.ticks) - min(self.ticks))

    def label(self, axes: Axes) -> None:
        if self.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        shown = [list(self.ticks)[index] for index in self._apart()]
        axes.set_xticks(shown, [self.ticks[place] for place in shown])
        if not self.numeric and max(map(len, self.ticks.values())) > 4:
            axes.tick_params(axis="x", labelrotation=90)
        axes.margins(x=0.08)
        axes.set_xlabel(_COORDINATES.get(self.x, self.x))

    def _apart(self) -> list[int]:
        """Indices of ticks whose labels do not touch."""
        places = np.array(list(self.ticks), np.float64)
        if not self.numeric or len(places) < 2:
            return list(range(len(places)))
        scaled = np.log(places) if self.logarithmic else places
        scaled = (scaled - scaled[0]) / (scaled[-1] - scaled[0])
        kept = [len(scaled) - 1]
        for index in range(len(scaled) - 2, -1, -1):
            if scaled[kept[-1]] - scaled[index] >= 0.21:
                kept.append(index)
        return sorted(kept)


def _styles(study: StudyFolder, labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each series; all of an arm's specialists and of the shared LoRA keep their colours alone."""
    specialists = [label for label in labels if label.split(",")[0] == "specialist"]
    others = [label for label in labels if label not in specialists]
    found = {label: (draw.SPECIALIST, "oDPX"[index % 4]) for index, label in enumerate(specialists)}
    others.sort(key=lambda label: not label.startswith(study.label(study.shared or "")))
    return found | {
        label: (draw.SERIES[index % len(draw.SERIES)], draw.MARKERS[index % len(draw.MARKERS)])
        for index, label in enumerate(others)
    }


def _line(axes: Axes, cells: Sequence[tuple[float, Number | None]], colour: str, shape: str) -> None:
    known = [(place, cell) for place, cell in cells if cell is not None and cell.mean is not None]
    if not known:
        return
    axes.plot(
        [place for place, _ in known],
        [cell.mean or 0.0 for _, cell in known],
        shape,
        color=colour,
        ls="-",
        lw=1.2,
        ms=3.5,
        mew=0,
    )
    for place, cell in known:
        low, high = cell.ci95
        if low is not None and high is not None:
            axes.plot([place] * 2, [low, high], color=colour, lw=0.9, alpha=0.7, solid_capstyle="butt")


def _draw_bm25(axes: Axes, study: StudyFolder, task: Task) -> bool:
    """Its line and interval, on the first variant's collections."""
    scores = study.results.scores[study.variants[0]] if study.variants else {}
    found = scores[task].macro.get(BM25) if task in scores else None
    if found is None or found.score.mean is None:
        return False
    if found.score.low is not None and found.score.high is not None:
        axes.axhspan(found.score.low, found.score.high, color=draw.GRID, alpha=0.5, lw=0, zorder=0)
    axes.axhline(found.score.mean, color=draw.INK, lw=0.9, ls=(0, (4, 2)), zorder=1)
    return True


def _note_random(axes: Axes, study: StudyFolder, task: Task) -> None:
    """In words: a line at a random order's score would leave the others a strip at the top."""
    means = [point.score.mean for point in references(study, task) if point.arm == RANDOM]
    if means and means[0] is not None:
        axes.text(0.98, 0.02, f"random order: {means[0]:.2f}", transform=axes.transAxes, ha="right", fontsize=6.5)


def _draw_undetectable(axes: Axes, ruler: _Ruler, points: Sequence[Point]) -> bool:
    widest: dict[float, float] = {}
    for point in points:
        if point.mde is not None:
            place = ruler.place(point)
            widest[place] = max(widest.get(place, 0.0), point.mde)
    if not widest:
        return False
    places = sorted(widest)
    reach = np.array([widest[place] for place in places])
    if len(places) == 1:
        axes.axhspan(-reach[0], reach[0], color=draw.UNDETECTABLE, lw=0, zorder=0)
    else:
        axes.fill_between(places, -reach, reach, color=draw.UNDETECTABLE, lw=0, zorder=0)
    return True
