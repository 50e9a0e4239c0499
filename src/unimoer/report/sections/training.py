"""Training loss of specialists and the shared LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from unimoer.report import draw
from unimoer.report.section import Drawing, Section
from unimoer.report.study import StudyFolder
from unimoer.schema import TrainingLine
from unimoer.types import Task

Logs = Mapping[tuple[Task, str], Sequence[Sequence[TrainingLine]]]
"""(Task, arm) -> lines of each run that have a loss, by step of the task."""


def build(study: StudyFolder) -> Section | None:
    logs = _logs(study)
    if not logs:
        return None
    several = any(len(runs) > 1 for runs in logs.values())
    return Section(
        "Training",
        drawings=[
            Drawing(
                "training",
                "Training loss, specialist against shared LoRA",
                "Smoothed loss against the number of steps of the task itself, so that equal places on the axis have "
                "seen equal examples. Dotted: from here on mined negatives are drawn, so the task is harder and the "
                "loss jumps; the model does not diverge."
                + (" Lines: mean over seeds; bands: their range." if several else " Faint: the unsmoothed loss."),
                partial(_draw, study, logs),
            )
        ],
    )


def hard_from(lines: Sequence[TrainingLine]) -> int | None:
    """Step of the task from which mined negatives are drawn; None where that is always or never so."""
    known = [(line.task_step, line.hard) for line in lines if line.hard is not None]
    easy = [step for step, hard in known if not hard]
    return min((step for step, hard in known if hard and step > min(easy)), default=None) if easy else None


def _logs(study: StudyFolder) -> Logs:
    found: dict[tuple[Task, str], list[list[TrainingLine]]] = {}
    for task in Task:
        for arm in (study.specialist(task), study.shared):
            for run in study.runs(arm):
                lines = [line for line in study.losses(run) if line.task == task and line.loss is not None]
                if arm is not None and len(lines) > 1:
                    found.setdefault((task, arm), []).append(sorted(lines, key=lambda line: line.task_step))
    return found


def _draw(study: StudyFolder, logs: Logs) -> Figure:
    figure = Figure(figsize=(draw.WIDTH, 2.35), layout="constrained")
    panels = figure.subplots(1, len(Task))
    handles: dict[str, Any] = {}
    for axes, task in zip(panels, Task, strict=True):
        for arm, label, colour, style in (
            (study.specialist(task), "specialist", draw.SPECIALIST, "-"),
            (study.shared, "joint", draw.SHARED, (0, (4, 1.2))),
        ):
            runs = logs.get((task, arm), []) if arm else []
            if not runs:
                continue
            handles[label] = Line2D([], [], color=colour, lw=1.3, ls=style)
            losses = [np.array([line.loss for line in run], np.float64) for run in runs]
            length = min(map(len, losses))
            steps = [line.task_step for line in runs[0][:length]]
            smoothed = np.stack([smooth(run)[:length] for run in losses])
            if len(runs) == 1:
                axes.plot(steps, losses[0], color=colour, lw=0.5, alpha=0.22)
            else:
                axes.fill_between(steps, smoothed.min(axis=0), smoothed.max(axis=0), color=colour, alpha=0.18, lw=0)
            axes.plot(steps, smoothed.mean(axis=0), color=colour, lw=1.3, ls=style)
        starts = {hard_from(run) for (of, _), runs in logs.items() if of == task for run in runs} - {None}
        for start in starts:
            axes.axvline(start, color=draw.INK, lw=0.9, ls=(0, (1, 2)))
            handles["mined negatives begin"] = Line2D([], [], color=draw.INK, lw=0.9, ls=(0, (1, 2)))
        axes.set_title(task.capitalize(), loc="left")
        axes.set_xlabel(f"steps of {task}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y")
    panels[0].set_ylabel("training loss")
    draw.legend(figure, handles)
    return figure


def smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over about a twelfth of the run; the window shrinks at both ends instead of padding."""
    reach = max(1, len(losses) // 24)
    total = np.concatenate([[0.0], np.cumsum(losses)])
    index = np.arange(len(losses))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(losses))
    return (total[last] - total[first]) / (last - first)
