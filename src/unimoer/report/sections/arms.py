"""Arms for both tasks against one shared LoRA, and learned routing against its own untrained start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from unimoer.report import draw, text
from unimoer.report.section import Drawing, Section
from unimoer.report.study import StudyFolder
from unimoer.report.table import Cell, Table, percentage, scored
from unimoer.schema import Cell as Number
from unimoer.schema.decision import Lead
from unimoer.schema.plan import ArmPlan
from unimoer.schema.results import ArmCosts, Ranking, Recovered, Recovery
from unimoer.types import Schedule, Task

_GRADIENTS = {"pcgrad": "PCGrad", "cagrad": "CAGrad", "gradnorm": "GradNorm", "famo": "FAMO"}
_SCHEDULES = {Schedule.MIXED: "both tasks in every step", Schedule.STAGED: "embedding first, then reranking"}
_READS = {"sequence": "per text", "causal": "per prefix", "token": "per token"}


def build(study: StudyFolder) -> Section | None:
    recovery = study.results.recovery
    if recovery is None:
        return None
    overview, lead = _overview(study, recovery), _lead(study, recovery.ranking, "points of mean TIR")
    return Section(
        "Arms for both tasks",
        paragraphs=[lead, *(_task(study, recovery, task) for task in recovery.tasks), *_reserves(study)],
        drawings=[
            Drawing(
                "arms",
                "Arms against one shared LoRA",
                f"Difference in {study.metric_label} to one LoRA for both tasks, averaged over collections, with 95% "
                "intervals that are not corrected for the number of arms; right of 0 is better. Thin grey: difference "
                "of a learned router to the same arm with its routers left untrained. Top row: the specialist. "
                f"{draw.FILLED} {draw.BAND}",
                partial(_draw, study, recovery),
            )
        ],
        tables=[
            overview,
            *(_task_table(study, recovery, task) for task in recovery.tasks),
            _costs_table(study, recovery),
        ],
        folded=[_collections_table(study, recovery, task) for task in recovery.tasks],
        brief=[_brief(study, recovery), lead],
    )


def describe(plan: ArmPlan, learned: bool) -> str:
    """What an arm is: `3 experts, learned sparsegen router per text`."""
    experts = f"{len(plan.experts)} experts" if len(plan.experts) > 1 else "one LoRA"
    parts = [f"ranks of {experts}" if plan.rank_wise else experts]
    if plan.router is not None:
        how = "learned" if learned else "fixed"
        parts.append(f"{how} {plan.router} router {_READS.get(str(plan.granularity), '')}".rstrip())
    parts += [f"untrained start of {plan.null_of}"] if plan.null_of else []
    parts += ["told the task"] if plan.told_task else []
    parts += [f"task prior {plan.task_prior:g}"] if plan.task_prior else []
    parts += [_SCHEDULES[plan.schedule]] if plan.schedule in _SCHEDULES else []
    parts += [_GRADIENTS.get(plan.gradients, plan.gradients)] if plan.gradients != "sum" else []
    return ", ".join(parts)


def _lead(study: StudyFolder, ranking: Ranking, unit: str) -> str:
    """Who is first, and what cannot be told from it."""
    if not ranking.order:
        return "The arms are not ranked."
    best, others = ranking.order[0], len(ranking.order) - 1
    sentences = [f"{study.label(best)} comes first of {text.plural(others + 1, 'arm')}."]
    if ranking.lead is not None:
        sentences.append(_ahead(study, ranking.lead, unit))
    if ranking.not_told_apart:
        tied = len(ranking.not_told_apart)
        names = text.listed([study.label(arm) for arm in ranking.not_told_apart])
        rest = "" if tied == others else "; the others lie behind"
        sentences.append(f"Intervals widened for having picked the best cannot tell it from {names}{rest}.")
        if study.shared in (best, *ranking.not_told_apart):
            sentences.append(
                "One shared LoRA may be the best, so nothing here shows that experts or routers are needed."
            )
    elif others:
        sentences.append("Intervals widened for having picked the best put every other arm behind it.")
    if ranking.learned is not None:
        low, high = ranking.learned.ci95
        settled = low is not None and high is not None and (low > 0 or high < 0)
        sentences.append(f"Best learned router and best arm without one: {_ahead(study, ranking.learned, unit)}")
        if not settled:
            sentences.append("That does not settle whether learning to route helps.")
    return " ".join(sentences)


def _ahead(study: StudyFolder, lead: Lead, unit: str) -> str:
    bounds = text.interval(lead.ci95, 1)
    size = f"ahead by {text.decimal(lead.mean, 1)} {unit}" + (f", 95% interval {bounds}" if bounds else "")
    return f"{study.label(lead.arm)} against {study.label(lead.rival)}: {size}."


def _task(study: StudyFolder, recovery: Recovery, task: Task) -> str:
    found = recovery.tasks[task]
    significant = [
        f"{arm} ({text.score(cell.difference.mean, signed=True)})"
        for arm, cell in found.arms.items()
        if arm != recovery.baseline and cell.p_holm is not None and cell.p_holm < 0.05
    ]
    outcome = text.listed(significant) if significant else "none"
    return (
        f"{task.capitalize()}: the specialist is {scored(found.lost, signed=True)} {study.metric_label} ahead of one "
        f"shared LoRA. Arms that differ from the shared LoRA with a Holm-corrected p below 0.05: {outcome}."
    )


def _reserves(study: StudyFolder) -> list[str]:
    """What a reader has to know before believing any of it."""
    arms = study.results.arms
    found = []
    unmoved = [arm for arm in study.joint_arms if arms[arm].plan.learned and not study.learned(arm)]
    if unmoved:
        found.append(f"Routers that training left where they began, counted as not learned: {text.listed(unmoved)}.")
    sizes = {arm: arms[arm].costs.parameters_to_joint for arm in study.joint_arms}
    unequal = [f"{arm} {text.percent(size, True)}" for arm, size in sizes.items() if size is not None and abs(size) > 2]
    if unequal:
        found.append(f"Not of the shared LoRA's size: {text.listed(unequal)} parameters.")
    steps = arms[study.shared].plan.steps if study.shared in arms else {}
    other = [arm for arm in study.joint_arms if arms[arm].plan.steps != steps]
    if other and steps:
        found.append(f"Trained for other numbers of steps than the shared LoRA: {text.listed(other)}.")
    return found


def _overview(study: StudyFolder, recovery: Recovery) -> Table:
    rows: list[list[Cell | str]] = []
    for arm in recovery.ranking.order:
        result = study.results.arms[arm]
        size, more = result.plan.adapter_parameters + result.plan.router_parameters, result.costs.parameters_to_joint
        by_task = [recovery.tasks[task].arms.get(arm) for task in recovery.tasks]
        overall = recovery.arms.get(arm)
        rows.append(
            [
                study.label(arm),
                describe(result.plan, study.learned(arm)),
                text.compact(size) + (f" ({text.percent(more, True)})" if more else ""),
                *(percentage(cell.tir if cell else None) for cell in by_task),
                percentage(overall.tir if overall else None),
                percentage(overall.difference if overall and arm != recovery.baseline else None),
                percentage(overall.to_start if overall else None),
            ]
        )
    return Table(
        "arms",
        "Arms for both tasks, from best to worst by the mean of their two interference ratios",
        [
            "Arm",
            "What it is",
            "Parameters",
            *(f"TIR {task}" for task in recovery.tasks),
            "Mean TIR",
            "Gained",
            "To start",
        ],
        rows,
        text_columns=2,
        notes="In percent of the specialists' scores. Gained: how many points less than the shared LoRA the arm loses. "
        "To start: the same against its own routers left untrained. Parameters: of adapter and routers, and how many "
        "percent more than the shared LoRA's.",
    )


def _task_table(study: StudyFolder, recovery: Recovery, task: Task) -> Table:
    found = recovery.tasks[task]
    scores = study.results.scores[study.variants[0]][task].macro
    specialist = study.specialist(task)
    rows: list[list[Cell | str]] = []
    if specialist in scores:
        rows.append(
            [study.label(specialist), scored(scores[specialist].score), "", scored(found.lost, True), *[""] * 4]
        )
    for arm in found.ranking.order:
        cell = found.arms.get(arm)
        if cell is None:
            rows.append([study.label(arm), scored(scores[arm].score) if arm in scores else "", *[""] * 6])
            continue
        own = arm != recovery.baseline
        rows.append(
            [
                study.label(arm),
                scored(cell.score),
                percentage(cell.tir),
                scored(cell.difference, True) if own else "",
                text.score(cell.mde) if own else "",
                text.p_value(cell.p_holm) if own else "",
                scored(cell.to_start, True) if cell.to_start else "",
                _recovered(cell.recovery) if own else "",
            ]
        )
    reasons = {cell.recovery.reason for cell in found.arms.values() if cell.recovery.reason}
    families = text.listed([f"{number} {name}" for name, number in recovery.families.items()]) or "none"
    return Table(
        f"arms_{task}",
        f"{task.capitalize()}: arms against one shared LoRA",
        ["Arm", study.metric_label, "TIR", "Difference", "MDE", "p (Holm)", "To start", "Recovery"],
        rows,
        rules=frozenset({1}) if specialist in scores else frozenset(),
        notes="Difference: arm − shared LoRA. MDE: the smallest difference that would be detected with a power of 80%. "
        f"p: over queries and seeds; families: {families}. To start: arm − the same arm with untrained routers. "
        "Recovery: share of the specialist's lead over the shared LoRA that the arm wins back."
        + "".join(f" Not given: {reason}." for reason in sorted(reasons)),
    )


def _recovered(recovery: Recovered) -> Cell:
    return percentage(Number(mean=recovery.mean, ci95=recovery.ci95), 0)


def _collections_table(study: StudyFolder, recovery: Recovery, task: Task) -> Table:
    names = [name for name in sorted(recovery.datasets) if task in recovery.datasets[name]]
    columns = [*(recovery.datasets[name][task] for name in names), recovery.tasks[task].arms]
    rows = [
        [
            study.label(arm),
            *(scored(found[arm].difference, True) if arm in found else text.MISSING for found in columns),
        ]
        for arm in recovery.tasks[task].ranking.order
        if arm != recovery.baseline
    ]
    caption = f"{task.capitalize()}: difference to one shared LoRA by collection"
    return Table(f"arms_{task}_collections", caption, ["Arm", *names, "Average"], rows)


_COSTS: list[tuple[str, Callable[[ArmCosts], str]]] = [
    ("Training", lambda costs: text.duration(costs.train_seconds)),
    ("Tokens/s", lambda costs: text.count(costs.tokens_per_second)),
    ("Evaluation", lambda costs: text.duration(costs.eval_seconds)),
    ("Peak memory", lambda costs: text.gibibytes(costs.peak_memory_mb)),
    ("Trainable", lambda costs: text.count(costs.trainable_parameters)),
    ("Served, MiB", lambda costs: text.count(costs.serving.weights_mb if costs.serving else None)),
    ("Query, ms", lambda costs: text.decimal(costs.serving.embedding_ms if costs.serving else None, 1)),
    ("p95", lambda costs: text.decimal(costs.serving.embedding_ms_p95 if costs.serving else None, 1)),
    ("List, ms", lambda costs: text.decimal(costs.serving.reranking_ms if costs.serving else None, 1)),
    ("p95", lambda costs: text.decimal(costs.serving.reranking_ms_p95 if costs.serving else None, 1)),
]


def _costs_table(study: StudyFolder, recovery: Recovery) -> Table:
    specialists = [arm for arm in map(study.specialist, Task) if arm is not None]
    arms = [*specialists, *recovery.ranking.order]
    return Table(
        "costs",
        "What the arms cost",
        ["Arm", *(label for label, _ in _COSTS)],
        [[study.label(arm), *(show(study.results.arms[arm].costs) for _, show in _COSTS)] for arm in arms],
        rules=frozenset({len(specialists)}),
        notes="Means over seeds; peak memory is the largest of any run. Query: one query embedded; list: one query's "
        "candidates scored; one request at a time, with tokenisation, median and 95th percentile.",
    )


def _brief(study: StudyFolder, recovery: Recovery) -> Table:
    rows = [
        [
            study.label(arm),
            *(
                text.score(found.arms[arm].score.mean) if arm in found.arms else text.MISSING
                for found in recovery.tasks.values()
            ),
            *(
                [text.decimal(overall.tir.mean, 1, True), text.interval(overall.tir.ci95, 1)]
                if (overall := recovery.arms.get(arm))
                else [text.MISSING, ""]
            ),
        ]
        for arm in recovery.ranking.order
    ]
    return Table("brief_arms", "arms, best first", ["arm", *recovery.tasks, "mean TIR %", "95% interval"], rows)


def _draw(study: StudyFolder, recovery: Recovery) -> Figure:
    arms = [arm for arm in recovery.ranking.order if arm != recovery.baseline]
    figure, panels = draw.row_panels(["specialist", *arms], row_height=0.27, margin=1.45)
    handles: dict[str, Any] = {
        "one shared LoRA": Line2D([], [], color=draw.SHARED, lw=1.0),
        "specialist": draw.marker(draw.SPECIALIST, "D"),
    }
    shaded = False
    for axes, task in zip(panels, Task, strict=True):
        found = recovery.tasks.get(task)
        if found is None:
            continue
        cells = [
            found.lost,
            *(
                cell
                for arm in arms
                if arm in found.arms
                for cell in (found.arms[arm].difference, found.arms[arm].to_start)
            ),
        ]
        limits = draw.span(cells)
        axes.axvline(0, color=draw.SHARED, lw=1.0, zorder=1)
        draw.whisker(axes, 0, found.lost, limits, draw.SPECIALIST, "D")
        for row, arm in enumerate(arms, start=1):
            if arm not in found.arms:
                continue
            cell, learned = found.arms[arm], study.learned(arm)
            draw.undetectable(axes, row, cell.mde, limits)
            shaded = shaded or cell.mde is not None
            lifted = row - 0.13 if cell.to_start else row
            draw.whisker(axes, lifted, cell.difference, limits, draw.INK, "s" if learned else "o")
            handles["learned router" if learned else "not learned"] = draw.marker(draw.INK, "s" if learned else "o")
            if cell.to_start:
                draw.whisker(axes, row + 0.2, cell.to_start, limits, draw.MUTED, "s", size=3.0)
                handles["to its own start"] = draw.marker(draw.MUTED, "s")
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_xlabel(f"Δ {study.metric_label}   (better →)", fontsize=7)
    draw.legend(figure, {**handles, **draw.signs(shaded)}, columns=4)
    return figure
