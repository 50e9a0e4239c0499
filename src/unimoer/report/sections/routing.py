"""What the routers learned to tell apart, by layer and task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unimoer.report import draw, text
from unimoer.report.section import Drawing, Section
from unimoer.report.study import StudyFolder
from unimoer.report.table import Table
from unimoer.schema.results import RouterSummary, RoutingSummary, TaskRouting
from unimoer.types import Task

SEPARATE = 0.1
"""Bits of mutual information below which a router hardly tells the tasks apart."""
MOST_BARS = 6
"""Routers over more units, or unnamed ones, are drawn by how many are active and how evenly."""
_EXPERTS = {"embedding": "#56b4e9", "reranking": "#e69f00", "shared": "#93a1ae"}
_MORE_EXPERTS = ("#009e73", "#cc79a7", "#7a5195", "#b2ab3c", "#a65628", "#4d9085")
_ACTIVE = "#b9c2cb"
Row = tuple[str, RoutingSummary]
Placed = tuple[float, float, RouterSummary]
"""Left edge and width of a router on the axis of layers, and the router."""


def build(study: StudyFolder) -> Section | None:
    arms = [arm for arm in study.arms if arm in study.results.routing]
    if not arms:
        return None
    return Section(
        "Routing",
        paragraphs=_paragraphs(study, arms),
        drawings=[
            Drawing(
                "routing",
                "Routing by layer and task",
                "Share of each expert in the weights of the last quarter of training, and the bits of mutual "
                "information between task and expert, beside a line at what two halves of one task's batches give "
                "(noise). Colours are experts by name. Where there are too many units to tell apart: the share of "
                "active units, and dots for the entropy of a decision, 1 where all weigh alike.",
                partial(_draw, study, arms),
            )
        ],
        tables=[_table(study, arms)],
    )


def _paragraphs(study: StudyFolder, arms: Sequence[str]) -> list[str]:
    routing = study.results.routing
    learned = [arm for arm in arms if study.learned(arm) and routing[arm].mutual_information is not None]
    groups: dict[bool, list[str]] = {True: [], False: []}
    for arm in learned:
        found = routing[arm]
        gained = (found.mutual_information or 0.0) - (found.at_start or 0.0)
        bits = (
            f"{arm} ({text.decimal(found.mutual_information, 2)} bits; {text.decimal(found.at_start, 2)} at the start"
        )
        groups[gained >= max(SEPARATE, found.within_task or 0.0)].append(
            f"{bits}; noise {text.decimal(found.within_task, 2)})"
        )
    sentences = [
        "Mutual information between task and expert is 0 bits where both tasks are routed alike and 1 where they share "
        "no expert."
    ]
    if groups[True]:
        sentences.append(f"Learned to route the tasks apart: {text.listed(groups[True])}.")
    if groups[False]:
        sentences.append(f"Did not: {text.listed(groups[False])}; whatever these arms score is not due to it.")
    fixed = [
        f"{arm} ({text.decimal(routing[arm].mutual_information, 2)} bits)"
        for arm in arms
        if not study.learned(arm) and routing[arm].mutual_information is not None
    ]
    if fixed:
        sentences.append(f"Not learned, for comparison: {text.listed(fixed)}.")
    swapped = [arm for arm in learned if _roles_differ(routing[arm])]
    if swapped:
        sentences.append(
            f"Experts play other roles in other seeds in {text.listed(swapped)}; bits are means over seeds."
        )
    return [" ".join(sentences)]


def _roles_differ(found: RoutingSummary) -> bool:
    """Whether the mean weights of the seeds hide most of what each seed separates."""
    known = [
        (router.mutual_information, router.of_mean_weights)
        for router in found.routers
        if router.mutual_information is not None and router.of_mean_weights is not None
    ]
    each, mean = (sum(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
    return each / max(1, len(known)) >= SEPARATE and mean < each / 2


def _table(study: StudyFolder, arms: Sequence[str]) -> Table:
    def layers(found: RoutingSummary) -> str:
        bits = [router.mutual_information for router in found.routers if router.mutual_information is not None]
        return f"{min(bits):.2f} to {max(bits):.2f}" if bits else text.MISSING

    def over_layers(field: Callable[[TaskRouting], float | None]) -> Callable[[Row], str]:
        def both(row: Row) -> str:
            by_task = [
                [field(router.tasks[task]) for router in row[1].routers if task in router.tasks] for task in Task
            ]
            return " / ".join(text.decimal(_mean(values), 2) for values in by_task)

        return both

    return Table.of(
        "routing",
        "How the experts are chosen",
        [(arm, study.results.routing[arm]) for arm in arms],
        [
            ("Arm", lambda row: row[0]),
            ("Routing", lambda row: "learned" if study.learned(row[0]) else "not learned"),
            ("Units", lambda row: str(row[1].units)),
            ("Bits", lambda row: text.decimal(row[1].mutual_information, 2)),
            ("by layer", lambda row: layers(row[1])),
            ("at start", lambda row: text.decimal(row[1].at_start, 2)),
            ("noise", lambda row: text.decimal(row[1].within_task, 2)),
            ("Entropy", over_layers(lambda found: found.entropy)),
            ("Active", over_layers(lambda found: found.active_experts)),
            ("Alone", over_layers(lambda found: found.one_expert_share)),
        ],
        text_columns=2,
        notes="Last quarter of training, mean over layers and seeds. Units: experts, or ranks where ranks are routed. "
        "At start: of the first batches. Noise: of two halves of one task's batches. Entropy: 1 where all units weigh "
        "alike. Active: units of weight above 0. Alone: share of decisions with a single active unit; each of them for "
        "embedding / reranking.",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _draw(study: StudyFolder, arms: Sequence[str]) -> Figure:
    routing = study.results.routing
    barred = [
        arm for arm in arms if routing[arm].units <= MOST_BARS and all(one.experts for one in routing[arm].routers)
    ]
    colours = _colours([expert for arm in barred for expert in routing[arm].experts])
    layout = ConstrainedLayoutEngine(wspace=0.03, hspace=0.02)
    figure = Figure(figsize=(draw.WIDTH, 1.0 + 0.66 * len(arms)), layout=layout)
    grid = figure.subplots(len(arms), 3, sharex=True, sharey=True, squeeze=False, width_ratios=(4, 4, 3))
    layers = 1 + max((router.layer for arm in arms for router in routing[arm].routers), default=0)
    for panels, arm in zip(grid, arms, strict=True):
        placed = _places(routing[arm].routers)
        for axes, task in zip(panels, Task, strict=False):
            if arm in barred:
                _bars(axes, task, placed, colours)
            else:
                _activity(axes, task, placed)
        for left, width, router in placed:
            if router.mutual_information is not None:
                panels[2].bar(left, router.mutual_information, width, align="edge", color=draw.INK, lw=0)
            if router.within_task is not None:
                panels[2].plot([left, left + width], [router.within_task] * 2, color=draw.SHARED, lw=1.0)
        panels[0].set_title(arm, loc="left", fontsize=7.5, pad=2.5)
        for axes in panels:
            axes.set_xlim(0, layers)
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            columns = draw.thin(layers, 7)
            axes.set_xticks([column + 0.5 for column in columns], [str(column) for column in columns])
            axes.tick_params(labelsize=6.5)
    for axes, head in zip(
        grid[0], (*(f"{task.capitalize()} task" for task in Task), "Task → expert, bits"), strict=True
    ):
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
        handles["entropy"] = Line2D([], [], color=draw.INK, lw=0, marker="o", ms=2.6, mew=0)
    handles["noise"] = Line2D([], [], color=draw.SHARED, lw=1.0)
    draw.legend(figure, handles, columns=min(4, len(handles)))
    return figure


def _colours(experts: Sequence[str]) -> dict[str, str]:
    """The same colour for an expert of the same name in every arm."""
    names = list(dict.fromkeys(experts))
    others = [name for name in names if name not in _EXPERTS]
    more = {name: _MORE_EXPERTS[index % len(_MORE_EXPERTS)] for index, name in enumerate(others)}
    return {name: colour for name, colour in {**_EXPERTS, **more}.items() if name in names}


def _places(routers: Sequence[RouterSummary]) -> list[Placed]:
    """Routers of one layer share its place."""
    by_layer: dict[int, list[RouterSummary]] = {}
    for router in routers:
        by_layer.setdefault(router.layer, []).append(router)
    return [
        (layer + index / len(found), 1 / len(found), router)
        for layer, found in by_layer.items()
        for index, router in enumerate(found)
    ]


def _bars(axes: Axes, task: Task, placed: Sequence[Placed], colours: dict[str, str]) -> None:
    for left, width, router in placed:
        found = router.tasks.get(task)
        weights = dict(zip(router.experts, found.weights, strict=True)) if found and found.weights else {}
        total, bottom = sum(weights.values()), 0.0
        for expert, colour in colours.items():
            share = weights.get(expert, 0.0) / total if total > 0 else 0.0
            axes.bar(left, share, width, bottom, align="edge", color=colour, lw=0)
            bottom += share


def _activity(axes: Axes, task: Task, placed: Sequence[Placed]) -> None:
    for left, width, router in placed:
        found = router.tasks.get(task)
        if found and found.active_experts is not None:
            axes.bar(left, found.active_experts / router.units, width, align="edge", color=_ACTIVE, lw=0)
        if found and found.entropy is not None:
            axes.plot(left + width / 2, found.entropy, "o", color=draw.INK, ms=2.2, mew=0)
