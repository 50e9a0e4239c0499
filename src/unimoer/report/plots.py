"""Draws the figures of a report on matplotlib figures; nothing here touches files or global settings.

Specialist and joint have the same two colours everywhere, chosen from the palette of Okabe and Ito, which stays apart
under the common colour-vision deficiencies; markers and dashes differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from unimoer.report import wording
from unimoer.report.files import BM25, JOINT, SPECIALIST, UNTRAINED, Experiment
from unimoer.types import Task

INK = "#1b1f24"
PAPER = "#fffffe"
"""White in a file, and still a colour that the page can tell from any other white."""
MUTED = "#6a737d"
GRID = "#dfe3e8"
SPECIALIST_COLOUR = "#0072b2"
JOINT_COLOUR = "#d55e00"
BAND = "#f3efe6"
MISSING_COLOUR = "#e9ebee"
WIDTH = 4.4
_DIVERGING = LinearSegmentedColormap.from_list("conflict", ["#b35806", "#f1a340", "#f7f7f6", "#67a9cf", "#1f4e79"])
_SEQUENTIAL = LinearSegmentedColormap.from_list("ceiling", ["#f7f7f6", "#b5b1d2", "#54357f"])


def draw_scores(experiment: Experiment) -> Figure:
    """Arms with 95% intervals, references and the reranking ceiling: a row for each data set, a panel for each task."""
    names = [None, *experiment.datasets]
    figure, panels = _row_panels(names, row_height=0.33, margin=1.05)
    handles: dict[str, Any] = {}
    for axes, task in zip(panels, Task, strict=True):
        scores = experiment.results["scores"][task]
        ceilings = experiment.results["ceilings"]
        for row, name in enumerate(names):
            found = scores["macro"] if name is None else scores["datasets"].get(name, {})
            for arm, offset, colour, marker in (
                (SPECIALIST[task], -0.16, SPECIALIST_COLOUR, "o"),
                (JOINT, 0.16, JOINT_COLOUR, "s"),
            ):
                if arm in found:
                    value, (low, high) = found[arm]["mean"][experiment.metric], found[arm]["ci95"]
                    axes.plot([low, high], [row + offset] * 2, color=colour, lw=1.3, solid_capstyle="butt")
                    axes.plot(value, row + offset, marker, color=colour, ms=4, mew=0)
            for arm, marker in ((UNTRAINED, "D"), (BM25, "x")):
                if arm in found:
                    face = "none" if marker == "D" else MUTED
                    axes.plot(
                        found[arm]["mean"][experiment.metric], row, marker, mfc=face, mec=MUTED, ms=3.8, mew=0.9, ls=""
                    )
            limit = (ceilings["macro"] if name is None else ceilings["datasets"].get(name, {})).get(experiment.metric)
            if task == Task.RERANKING and limit is not None:
                axes.plot([limit] * 2, [row - 0.32, row + 0.32], color=INK, lw=1.4)
                handles["ceiling"] = Line2D([], [], color=INK, lw=0, marker="|", ms=7, mew=1.4)
        axes.set_title(str(task).capitalize(), loc="left")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.set_xlabel(wording.metric_label(experiment.metric))
        _rows(axes, names)
    present = {arm for task in Task for arm in experiment.results["scores"][task]["macro"]}
    shown = {
        "specialist": Line2D([], [], color=SPECIALIST_COLOUR, lw=1.3, marker="o", ms=4, mew=0),
        "joint": Line2D([], [], color=JOINT_COLOUR, lw=1.3, marker="s", ms=4, mew=0),
    }
    if UNTRAINED in present:
        shown["untrained"] = Line2D([], [], lw=0, marker="D", mfc="none", mec=MUTED, ms=3.8, mew=0.9)
    if BM25 in present:
        shown["BM25"] = Line2D([], [], lw=0, marker="x", mec=MUTED, ms=3.8, mew=0.9)
    legend(figure, {**shown, **handles})
    return figure


def draw_interference(experiment: Experiment) -> Figure:
    """TIR by task and data set with 95% intervals, the lines of the criterion, and the average of each seed."""
    names = [None, *experiment.datasets]
    criterion = experiment.decision["criterion"]
    figure, panels = _row_panels(names, row_height=0.27, margin=0.95)
    limit = _ratio_limit(experiment)
    for axes, task in zip(panels, Task, strict=True):
        axes.axvspan(criterion["pass"], limit, color=BAND, lw=0, zorder=0)
        axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
        for value, align in ((criterion["fail"], "right"), (criterion["pass"], "left")):
            axes.axvline(value, color=INK, lw=0.7, ls=(0, (3, 2)), zorder=1)
            # The two labels lean away from each other, so they never touch however close the lines are.
            axes.annotate(
                f"{value:g}%",
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(1.5 if align == "left" else -1.5, 1),
                textcoords="offset points",
                ha=align,
                va="bottom",
                fontsize=6.5,
            )
        for row, name in enumerate(names):
            cell = experiment.decision["tasks"] if name is None else experiment.decision["datasets"][name]
            if task not in cell:
                continue
            found = cell[task]["tir"]
            _ratio(axes, row, found, limit, average=name is None)
            if name is None and len(found["per_seed"]) > 1:
                seeds = [value for value in found["per_seed"].values() if value is not None]
                axes.plot(seeds, [row + 0.34] * len(seeds), "|", color=MUTED, ms=4, mew=0.9)
        axes.set_title(str(task).capitalize(), loc="left", pad=11)
        axes.set_xlim(-limit, limit)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("TIR, %   (joint worse →)", fontsize=7)
        _rows(axes, names)
    return figure


def draw_training(experiment: Experiment) -> Figure | None:
    """Training loss against updates of the task itself, specialist against joint; None without logs."""
    curves: dict[tuple[Task, str], list[NDArray[np.float64]]] = {}
    for task in Task:
        for arm in (SPECIALIST[task], JOINT):
            for run in experiment.runs(arm):
                log = experiment.log(run, "metrics.jsonl", ("step", "task", "domain"))
                losses = [
                    (line["task_step"], line["loss"])
                    for line in log
                    if line.get("task") == task and line.get("loss") is not None
                ]
                if len(losses) > 1:
                    curves.setdefault((task, arm), []).append(np.array(sorted(losses), np.float64))
    if not curves:
        return None
    figure = Figure(figsize=(WIDTH, 2.25), layout="constrained")
    panels = figure.subplots(1, len(Task))
    for axes, task in zip(panels, Task, strict=True):
        for arm, colour, style in ((SPECIALIST[task], SPECIALIST_COLOUR, "-"), (JOINT, JOINT_COLOUR, (0, (4, 1.2)))):
            runs = curves.get((task, arm), [])
            smoothed = [_smooth(run[:, 1]) for run in runs]
            if not runs:
                continue
            if len(runs) == 1:
                axes.plot(runs[0][:, 0], runs[0][:, 1], color=colour, lw=0.5, alpha=0.22)
            length = min(len(line) for line in smoothed)
            steps, stacked = runs[0][:length, 0], np.stack([line[:length] for line in smoothed])
            if len(runs) > 1:
                axes.fill_between(steps, stacked.min(axis=0), stacked.max(axis=0), color=colour, alpha=0.18, lw=0)
            axes.plot(steps, stacked.mean(axis=0), color=colour, lw=1.3, ls=style)
        axes.set_title(str(task).capitalize(), loc="left")
        axes.set_xlabel(f"updates on {task}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y")
    panels[0].set_ylabel("training loss")
    legend(
        figure,
        {
            "specialist": Line2D([], [], color=SPECIALIST_COLOUR, lw=1.3),
            "joint": Line2D([], [], color=JOINT_COLOUR, lw=1.3, ls=(0, (4, 1.2))),
        },
    )
    return figure


def draw_conflicts(experiment: Experiment) -> Figure | None:
    """Cosine of the two tasks' gradients, layer by step, beside its noise ceiling; None without a probe's log."""
    logs = [experiment.log(run, "gradient_conflicts.jsonl", ("step", "layer")) for run in experiment.runs(JOINT)]
    lines = [line for log in logs for line in log]
    if not lines:
        return None
    steps = sorted({line["step"] for line in lines})
    layers = sorted({line["layer"] for line in lines}, key=lambda layer: (isinstance(layer, str), layer))
    cosine = _grid(lines, layers, steps, lambda line: line.get("cosine"))
    ceiling = _grid(lines, layers, steps, _noise_ceiling)

    figure = Figure(figsize=(WIDTH, 1.35 + 0.075 * max(len(layers), 10)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    extreme = float(np.nanmax(np.abs(cosine))) if np.isfinite(cosine).any() else 1.0
    for axes, values, title, colours, low, high in (
        (panels[0], cosine, "Between the tasks", _DIVERGING, -(extreme or 1.0), extreme or 1.0),
        (panels[1], ceiling, "Within a task: ceiling", _SEQUENTIAL, 0.0, 1.0),
    ):
        axes.set_facecolor(MISSING_COLOUR)
        mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, lw=0, rasterized=True)
        axes.set_title(title, loc="left")
        columns = thin(len(steps), 5)
        axes.set_xticks([column + 0.5 for column in columns], [f"{steps[column]}" for column in columns])
        rows = thin(len(layers), 7)
        axes.set_yticks([row + 0.5 for row in rows], [str(layers[row]) for row in rows])
        axes.set_xlabel("step of the joint run")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=28, pad=0.02, shrink=0.9)
        bar.set_label("cosine of gradients", fontsize=7)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(4, symmetric=low < 0)
        bar.update_ticks()
    panels[0].set_ylabel("layer")
    return figure


def _ratio(axes: Axes, row: int, found: Mapping[str, Any], limit: float, average: bool) -> None:
    """One ratio with its interval; what leaves the axis ends in an arrow instead of being hidden."""
    value, (low, high) = found["mean"], found["ci95"]
    width, size = (1.5, 5.0) if average else (1.0, 4.0)
    if value is None:
        axes.text(0, row, "undefined", ha="center", va="center", fontsize=6.5, color=MUTED)
        return
    clear = low is not None and (low > 0 or high < 0)
    if low is not None:
        ends = np.clip([low, high], -limit, limit)
        axes.plot(ends, [row] * 2, color=INK, lw=width, solid_capstyle="butt")
        for edge, outside, arrow in ((ends[0], low < -limit, "<"), (ends[1], high > limit, ">")):
            # Caps keep an interval visible that is narrower than its marker.
            marker, size_of, edge_width = (arrow, 4.5, 0.0) if outside else ("|", 5.0, width)
            axes.plot(edge, row, marker, color=INK, ms=size_of, mew=edge_width, clip_on=False)
    if abs(value) <= limit:
        face = INK if clear else PAPER
        axes.plot(value, row, "D" if average else "o", mfc=face, mec=INK, ms=size, mew=1.0)


def _ratio_limit(experiment: Experiment) -> float:
    """Half width of the ratio axis: everything that fits within 40%, and always the lines of the criterion."""
    cells = [*experiment.decision["tasks"].values()]
    cells += [cell for by_task in experiment.decision["datasets"].values() for cell in by_task.values()]
    ends = [abs(end) for cell in cells for end in cell["tir"]["ci95"] if end is not None]
    lines = 2.0 * experiment.decision["criterion"]["pass"]
    return float(np.clip(1.08 * max([*ends, lines]), max(4.0, lines), max(40.0, lines)))


def _row_panels(names: Sequence[str | None], row_height: float, margin: float) -> tuple[Figure, Sequence[Axes]]:
    """A panel for each task, side by side, with the same rows; heights in inches."""
    # The gap keeps the last tick label of one panel off the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.05)
    figure = Figure(figsize=(WIDTH, margin + row_height * len(names)), layout=layout)
    return figure, figure.subplots(1, len(Task), sharey=True)


def _rows(axes: Axes, names: Sequence[str | None]) -> None:
    """Rows from the top: the average, set apart by a rule, then the data sets."""
    axes.set_ylim(len(names) - 0.45, -0.6)
    axes.set_yticks(range(len(names)), ["Average" if name is None else name for name in names])
    for label in axes.get_yticklabels()[:1]:  # none on a panel that shares its neighbour's labels
        label.set_fontweight("bold")
    axes.axhline(0.5, color=MUTED, lw=0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Above all panels, in one line."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=len(handles),
        columnspacing=1.2,
        handletextpad=0.4,
        handlelength=1.6,
        borderpad=0.2,
    )


def _smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over about a twelfth of the run; the window shrinks at both ends instead of padding."""
    reach = max(1, len(losses) // 24)
    total = np.concatenate([[0.0], np.cumsum(losses)])
    index = np.arange(len(losses))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(losses))
    return (total[last] - total[first]) / (last - first)


def _noise_ceiling(line: Mapping[str, Any]) -> float | None:
    first, second = line.get("reliability_embedding"), line.get("reliability_reranking")
    return None if first is None or second is None else float(np.sqrt(max(first, 0.0) * max(second, 0.0)))


def _grid(
    lines: Sequence[Mapping[str, Any]],
    layers: Sequence[Any],
    steps: Sequence[int],
    value: Callable[[Mapping[str, Any]], float | None],
) -> NDArray[np.float64]:
    """Mean over seeds, `[layers, steps]`; NaN where nothing was measured."""
    total, count = np.zeros((len(layers), len(steps))), np.zeros((len(layers), len(steps)))
    row, column = {layer: i for i, layer in enumerate(layers)}, {step: i for i, step in enumerate(steps)}
    for line in lines:
        found = value(line)
        if found is not None:
            total[row[line["layer"]], column[line["step"]]] += found
            count[row[line["layer"]], column[line["step"]]] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def thin(length: int, most: int) -> list[int]:
    """At most about `most` evenly spaced indices, from 0."""
    return list(range(0, length, max(1, -(-length // most))))
