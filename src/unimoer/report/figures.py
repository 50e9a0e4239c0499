"""Writes the figures of a report: PNG and PDF for papers, SVG for the page, whose theme its colours follow."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from unimoer.report import arm_plots, plots, wording
from unimoer.report.files import Experiment

THEMED = {
    plots.INK: "--ink",
    plots.PAPER: "--surface",
    plots.MUTED: "--muted",
    plots.GRID: "--rule",
    plots.SPECIALIST_COLOUR: "--specialist",
    plots.JOINT_COLOUR: "--joint",
    plots.BAND: "--band",
    plots.MISSING_COLOUR: "--missing",
}
"""Colour in a figure -> the page's variable that replaces it. No map may contain one of these colours."""

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.edgecolor": plots.MUTED,
    "axes.labelcolor": plots.INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": plots.INK,
    "xtick.color": plots.MUTED,
    "ytick.color": plots.MUTED,
    "xtick.labelcolor": plots.INK,
    "ytick.labelcolor": plots.INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": plots.GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class FigureFile:
    name: str
    title: str
    caption: str
    svg: str
    """Ready to be inlined: no XML header, no fixed size, the page's colours."""


def write_figures(experiment: Experiment) -> list[FigureFile]:
    """Draw every figure that the files allow into `figures/<name>.png` (200 dpi) and `.pdf`; returns them as SVG."""
    drawn: list[FigureFile] = []
    folder = experiment.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, title, caption, draw in _figures(experiment):
        # A context, not global settings: a caller's own plots keep their style.
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
            figure = draw(experiment)
            if figure is None:
                continue
            _save(figure, folder / f"{name}.png", dpi=200)
            figure.set_layout_engine("none")  # the places are found; finding them again would double the time
            # Without a date, equal results give equal files.
            _save(figure, folder / f"{name}.pdf", metadata={"CreationDate": None})
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", dpi=200, transparent=True, metadata={"Date": None})
        drawn.append(FigureFile(name, title, caption, themed_svg(buffer.getvalue(), name, title)))
    return drawn


def themed_svg(svg: str, name: str, title: str) -> str:
    """An SVG for inlining: ids made unique to the figure, fixed colours replaced by the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two inlined SVGs share one name space of ids.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in THEMED.items():
        svg = svg.replace(f"{colour}", f"var({variable})")
    return svg


def _figures(
    experiment: Experiment,
) -> Sequence[tuple[str, str, str, Callable[[Experiment], Figure | None]]]:
    """(file name, title, caption, drawing function), in the order of the report."""
    criterion, metric = experiment.decision["criterion"], wording.metric_label(experiment.metric)
    several = len(experiment.seeds) > 1
    return (
        (
            "interference",
            "Task interference ratio by task and data set",
            f"How much of its specialist's {metric} each task loses in the joint model, with 95% intervals; left of "
            f"zero the joint model is better. Dashed: the lines of the criterion, {criterion['fail']:g}% and "
            f"{criterion['pass']:g}%; shaded: the region of PASS. A filled marker's interval excludes zero."
            + (" Small ticks below the average: single seeds." if several else ""),
            plots.draw_interference,
        ),
        (
            "arms",
            "Arms against one shared LoRA",
            f"Difference in {metric} to one adapter for both tasks, paired by query{' and seed' if several else ''}, "
            "with 95% intervals, averaged over data sets; right of the line is better. On top and shaded: the "
            "specialist, a model for this task alone, and its interval. A filled marker's interval excludes zero, "
            "uncorrected for the number of arms. Arms from best to worst over both tasks; an arrow leaves the axis.",
            arm_plots.draw_arms,
        ),
        (
            "scores",
            "Scores by arm and data set",
            f"{metric} with 95% intervals over queries{' and seeds' if several else ''}. Open diamonds: the untrained "
            "base; crosses: BM25; tall ticks: the best that any order of the fixed candidate lists could reach. "
            "Intervals of two arms may overlap and the difference still be clear, because arms share their queries: "
            "differences are judged in the figure of ratios.",
            plots.draw_scores,
        ),
        (
            "training",
            "Training loss, specialist against joint",
            "Smoothed loss against the number of updates on the task itself, so that equal places on the axis have "
            "seen equal examples."
            + (" Lines: mean of the seeds; bands: their range." if several else " Faint: the unsmoothed loss."),
            plots.draw_training,
        ),
        (
            "conflicts",
            "Gradient conflict by layer and step",
            "Left: cosine between the gradients of the two tasks during joint training; orange is conflict. Right: how "
            "well a task's gradient agrees with itself, judged by two halves of its batch, averaged geometrically over "
            "the tasks: no cosine on the left can be expected to exceed it, so a pale cell on the left means little "
            "where the right is pale too. "
            "Grey: not measured." + (" Means over seeds." if several else ""),
            plots.draw_conflicts,
        ),
        (
            "routing",
            "Routing by layer and task",
            "Share of each expert in the weights of the last quarter of training, and the mutual information between "
            "task and expert: 0 bits where both tasks are routed alike, 1 where they share no expert. Colours are "
            "experts by name; a learned router is free to use any for either task. Where there are more units than can "
            "be told apart, as with routed ranks: the share of units that are active, and the entropy of a decision, 1 "
            "where all weigh alike." + (" Means over seeds; bits are those of each seed, averaged." if several else ""),
            arm_plots.draw_routing,
        ),
    )


def _save(figure: Figure, path: Path, **options: Any) -> None:
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, **options)
    temporary.replace(path)
