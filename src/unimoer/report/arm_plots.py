"""Draws the figures of the arms: their distance from one shared LoRA, and what their routers do by layer and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from unimoer.report import wording
from unimoer.report.files import JOINT, Experiment
from unimoer.report.plots import BAND, INK, JOINT_COLOUR, MUTED, PAPER, SPECIALIST_COLOUR, WIDTH, legend, thin
from unimoer.report.routing import is_learned
from unimoer.types import Task

MOST_BARS = 6
"""Routers over more units, or unnamed ones, are drawn by how many are active and how evenly."""
_EXPERTS = {"embedding": "#56b4e9", "reranking": "#e69f00", "shared": "#93a1ae"}
_MORE_EXPERTS = ("#009e73", "#cc79a7", "#7a5195", "#b2ab3c", "#a65628", "#4d9085")
_ACTIVE = "#b9c2cb"


def draw_arms(experiment: Experiment) -> Figure | None:
    """Difference of each arm to one shared LoRA with its 95% interval, by task, specialist on top; None without any."""
    recovery = experiment.recovery
    if not recovery:
        return None
    arms = [arm for arm in recovery["overall"]["ranking"] if arm != JOINT]
    learned = {arm for arm in arms if _is_learned(experiment, arm)}
    layout = ConstrainedLayoutEngine(wspace=0.04)
    figure = Figure(figsize=(WIDTH, 1.15 + 0.19 * (len(arms) + 1)), layout=layout)
    panels = figure.subplots(1, len(Task), sharey=True)
    for axes, task in zip(panels, Task, strict=True):
        found = recovery["tasks"][task]
        lost = found["lost"]
        low, high = _limits([lost, *(found["arms"][arm]["difference"] for arm in arms)])
        axes.axvspan(*np.clip(lost["ci95"], low, high), color=BAND, lw=0, zorder=0)
        axes.axvline(0, color=JOINT_COLOUR, lw=1.0, zorder=1)
        _whisker(axes, 0, lost, (low, high), SPECIALIST_COLOUR, "D")
        for row, arm in enumerate(arms, start=1):
            _whisker(axes, row, found["arms"][arm]["difference"], (low, high), INK, "s" if arm in learned else "o")
        axes.set_title(task.capitalize(), loc="left")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_xlabel(f"Δ {wording.metric_label(experiment.metric)}   (better →)", fontsize=7)
        axes.set_ylim(len(arms) + 0.55, -0.6)
        axes.axhline(0.5, color=MUTED, lw=0.5)
        axes.set_yticks(range(len(arms) + 1), ["specialist", *arms])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    handles = {
        "one shared LoRA": Line2D([], [], color=JOINT_COLOUR, lw=1.0),
        "specialist": Line2D([], [], color=SPECIALIST_COLOUR, lw=1.1, marker="D", ms=4, mew=0),
    }
    if learned:
        handles["learned router"] = Line2D([], [], color=INK, lw=1.1, marker="s", ms=4, mfc=PAPER, mec=INK)
    if learned != set(arms):
        handles["other" if learned else "arm"] = Line2D([], [], color=INK, lw=1.1, marker="o", ms=4, mfc=PAPER, mec=INK)
    legend(figure, handles)
    return figure


def draw_routing(experiment: Experiment) -> Figure | None:
    """Share of each expert by layer, a row for each arm, a panel for each task, and beside them the bits between the
    two; None where no arm logged its routing."""
    arms = [arm for arm in experiment.extra_arms if arm in experiment.routing]
    if not arms:
        return None
    barred = [arm for arm in arms if _has_bars(experiment.routing[arm])]
    colours = _colours([expert for arm in barred for expert in experiment.routing[arm]["experts"]])
    layout = ConstrainedLayoutEngine(wspace=0.03, hspace=0.02)
    figure = Figure(figsize=(WIDTH, 1.0 + 0.66 * len(arms)), layout=layout)
    grid = figure.subplots(len(arms), 3, sharex=True, sharey=True, squeeze=False, width_ratios=(4, 4, 3))
    layers = 1 + max(entry["layer"] for arm in arms for entry in experiment.routing[arm]["routers"])
    for panels, arm in zip(grid, arms, strict=True):
        routers = _places(experiment.routing[arm]["routers"])
        for axes, task in zip(panels, Task, strict=False):
            if arm in barred:
                _stack(axes, task, routers, colours)
            else:
                _spread(axes, task, routers)
        for place, width, entry in routers:
            bits = entry["mutual_information"]["mean"]
            if bits is not None:
                panels[2].bar(place, bits, width, align="edge", color=INK, lw=0)
        panels[0].set_title(arm, loc="left", fontsize=7.5, pad=2.5)
        for axes in panels:
            axes.set_xlim(0, layers)
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            columns = thin(layers, 7)
            axes.set_xticks([column + 0.5 for column in columns], [str(column) for column in columns])
            axes.tick_params(labelsize=6.5)
    heads = (*(f"{task.capitalize()} task" for task in Task), "Task → expert, bits")
    for axes, head in zip(grid[0], heads, strict=True):
        axes.annotate(
            head,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 14),
            textcoords="offset points",
            fontsize=7.5,
            va="bottom",
        )
    for axes in grid[-1]:
        axes.set_xlabel("layer", fontsize=7)
    handles: dict[str, Any] = {expert: Patch(color=colour, lw=0) for expert, colour in colours.items()}
    if len(barred) < len(arms):
        handles["active units"] = Patch(color=_ACTIVE, lw=0)
        handles["entropy"] = Line2D([], [], color=INK, lw=0, marker="o", ms=2.6, mew=0)
    legend(figure, handles)
    return figure


def _whisker(
    axes: Axes, row: int, found: Mapping[str, Any], limits: tuple[float, float], colour: str, marker: str
) -> None:
    """A difference with its interval, filled where that excludes zero; what leaves the axis ends in an arrow."""
    (low, high), (first, last) = found["ci95"], limits
    ends = np.clip([low, high], first, last)
    axes.plot(ends, [row] * 2, color=colour, lw=1.1, solid_capstyle="butt", zorder=3)
    for edge, outside, arrow in ((ends[0], low < first, "<"), (ends[1], high > last, ">")):
        if outside:
            axes.plot(edge, row, arrow, color=colour, ms=4, mew=0, clip_on=False, zorder=3)
    if first <= found["mean"] <= last:
        face = colour if low > 0 or high < 0 else PAPER
        axes.plot(found["mean"], row, marker, mfc=face, mec=colour, ms=4, mew=0.9, zorder=4)


def _limits(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Ends of the axis: all intervals and zero, but an arm that fails badly must not flatten the others."""
    ends = np.array([end for cell in cells for end in cell["ci95"]])
    reach = max(4.0 * float(np.median(np.abs(ends))), 1e-3)
    low, high = max(ends.min(), -reach), min(ends.max(), reach)
    # Intervals of no width, where an experiment is too small to tell anything, still need an axis.
    margin = max(0.06 * (max(high, 0.0) - min(low, 0.0)), 1e-3)
    return min(low, 0.0) - margin, max(high, 0.0) + margin


def _is_learned(experiment: Experiment, arm: str) -> bool:
    return is_learned(experiment.router(arm))


def _has_bars(found: Mapping[str, Any]) -> bool:
    return found["units"] <= MOST_BARS and all(entry["experts"] for entry in found["routers"])


def _colours(experts: Sequence[str]) -> dict[str, str]:
    """The same colour for an expert of the same name in every arm."""
    names = list(dict.fromkeys(experts))
    others = [name for name in names if name not in _EXPERTS]
    more = {name: _MORE_EXPERTS[index % len(_MORE_EXPERTS)] for index, name in enumerate(others)}
    return {name: colour for name, colour in {**_EXPERTS, **more}.items() if name in names}


def _places(routers: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, Mapping[str, Any]]]:
    """Left edge and width of each router on the axis of layers; those of one layer share its place."""
    by_layer: dict[int, list[Mapping[str, Any]]] = {}
    for entry in routers:
        by_layer.setdefault(entry["layer"], []).append(entry)
    return [
        (layer + index / len(found), 1 / len(found), entry)
        for layer, found in by_layer.items()
        for index, entry in enumerate(found)
    ]


def _stack(
    axes: Axes,
    task: Task,
    routers: Sequence[tuple[float, float, Mapping[str, Any]]],
    colours: Mapping[str, str],
) -> None:
    for place, width, entry in routers:
        weights = dict(zip(entry["experts"], entry["tasks"].get(task, {}).get("weights", []), strict=False))
        total, bottom = sum(weights.values()), 0.0
        for expert, colour in colours.items():
            share = weights.get(expert, 0.0) / total if total > 0 else 0.0
            axes.bar(place, share, width, bottom, align="edge", color=colour, lw=0)
            bottom += share


def _spread(axes: Axes, task: Task, routers: Sequence[tuple[float, float, Mapping[str, Any]]]) -> None:
    for place, width, entry in routers:
        found = entry["tasks"].get(task, {})
        if found.get("active_experts") is not None:
            axes.bar(place, found["active_experts"] / entry["units"], width, align="edge", color=_ACTIVE, lw=0)
        if found.get("entropy") is not None:
            axes.plot(place + width / 2, found["entropy"], "o", color=INK, ms=2.2, mew=0)
