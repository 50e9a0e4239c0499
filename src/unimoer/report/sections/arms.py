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
from unimoer.schema.decision import Lead
from unimoer.schema.plan import ArmPlan
from unimoer.schema.results import Ranking, Recovery
from unimoer.schema.run import ServingCosts
from unimoer.types import Schedule, Task

_GRADIENTS = {"pcgrad": "PCGrad", "cagrad": "CAGrad", "gradnorm": "GradNorm", "famo": "FAMO"}
_SCHEDULES = {Schedule.MIXED: "both tasks in every step", Schedule.STAGED: "embedding first, then reranking"}
_READS = {"sequence": "per text", "causal": "per prefix", "token": "per token"}


def build(study: StudyFolder) -> Section | None:
    recovery = study.results.recovery
    if recovery is None:
        return None
    lead = _lead(study, recovery.ranking)
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
            _overview(study, recovery),
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


def _lead(study: StudyFolder, ranking: Ranking) -> str:
    """Who is first, and what cannot be told from it."""
    if not ranking.order:
        return "The arms are not ranked."
    best, others = ranking.order[0], len(ranking.order) - 1
    sentences = [f"{study.label(best)} comes first of {text.plural(others + 1, 'arm')} by mean TIR."]
    if ranking.lead is not None:
        sentences.append(_ahead(study, ranking.lead))
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
        sentences.append(f"Best learned router and best arm without one: {_ahead(study, ranking.learned)}")
        if not settled:
            sentences.append("That does not settle whether learning to route helps.")
    return " ".join(sentences)


def _ahead(study: StudyFolder, lead: Lead) -> str:
    """The one ahead is named first, so that its lead is a positive number."""
    (first, second), size, (low, high) = (lead.arm, lead.rival), lead.mean, lead.ci95
    if size is not None and size < 0:
        first, second, size = second, first, -size
        low, high = None if high is None else -high, None if low is None else -low
    bounds = text.interval((low, high), 1)
    interval = f", 95% interval {bounds}" if bounds else ""
    return f"{study.label(first)} is ahead of {study.label(second)} by {text.decimal(size, 1)} points{interval}."


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
    def size(arm: str) -> str:
        result = study.results.arms[arm]
        more = result.costs.parameters_to_joint
        parameters = text.compact(result.plan.adapter_parameters + result.plan.router_parameters)
        return parameters + (f" ({text.percent(more, True)})" if more else "")

    def lost(task: Task) -> Callable[[str], Cell]:
        return lambda arm: percentage(found.tir if (found := recovery.tasks[task].arms.get(arm)) else None)

    return Table.of(
        "arms",
        "Arms for both tasks, from best to worst by the mean of their two interference ratios",
        [arm for arm in recovery.ranking.order if arm in recovery.arms],
        [
            ("Arm", study.label),
            ("What it is", lambda arm: describe(study.results.arms[arm].plan, study.learned(arm))),
            ("Parameters", size),
            *((f"TIR {task}", lost(task)) for task in recovery.tasks),
            ("Mean TIR", lambda arm: percentage(recovery.arms[arm].tir)),
            ("Gained", lambda arm: percentage(recovery.arms[arm].difference) if arm != recovery.baseline else ""),
            ("To start", lambda arm: percentage(recovery.arms[arm].to_start)),
        ],
        text_columns=2,
        notes="In percent of the specialists' scores. Gained: how many points less than the shared LoRA the arm loses. "
        "To start: the same against its own routers left untrained. Parameters: of adapter and routers, and how many "
        "percent more than the shared LoRA's.",
    )


def _task_table(study: StudyFolder, recovery: Recovery, task: Task) -> Table:
    found = recovery.tasks[task]
    reasons = {
        cell.recovery.reason for arm, cell in found.arms.items() if cell.recovery.reason and arm != recovery.baseline
    }
    families = text.listed([f"{number} {name}" for name, number in recovery.families.items()]) or "none"
    return Table.of(
        f"arms_{task}",
        f"{task.capitalize()}: arms against one shared LoRA, over which the specialist leads by {scored(found.lost)}",
        [(arm, found.arms[arm]) for arm in found.ranking.order if arm in found.arms],
        [
            ("Arm", lambda row: study.label(row[0])),
            (study.metric_label, lambda row: scored(row[1].score)),
            ("TIR", lambda row: percentage(row[1].tir)),
            ("Difference", lambda row: scored(row[1].difference, True) if row[0] != recovery.baseline else ""),
            ("MDE", lambda row: text.score(row[1].mde)),
            ("p (Holm)", lambda row: text.p_value(row[1].p_holm)),
            ("To start", lambda row: scored(row[1].to_start, True)),
            ("Recovery", lambda row: percentage(row[1].recovery, 0)),
        ],
        notes="Difference: arm − shared LoRA. MDE: the smallest difference that would be detected with a power of 80%. "
        f"p: over queries and seeds; families: {families}. To start: arm − the same arm with untrained routers. "
        "Recovery: share of the specialist's lead over the shared LoRA that the arm wins back."
        + "".join(f" Not given: {reason}." for reason in sorted(reasons)),
    )


def _collections_table(study: StudyFolder, recovery: Recovery, task: Task) -> Table:
    names = [name for name in sorted(recovery.datasets) if task in recovery.datasets[name]]
    columns = [*(recovery.datasets[name][task] for name in names), recovery.tasks[task].arms]
    arms = [arm for arm in recovery.tasks[task].ranking.order if arm != recovery.baseline]
    rows: list[list[Cell | str]] = [
        [study.label(arm), *(scored(found[arm].difference if arm in found else None, True) for found in columns)]
        for arm in arms
    ]
    caption = f"{task.capitalize()}: difference to one shared LoRA by collection"
    return Table(f"arms_{task}_collections", caption, ["Arm", *names, "Average"], rows)


def _costs_table(study: StudyFolder, recovery: Recovery) -> Table:
    specialists = [arm for arm in map(study.specialist, Task) if arm is not None]
    serving = ServingCosts(weights_mb=0.0)
    costs = [(arm, study.results.arms[arm].costs) for arm in (*specialists, *recovery.ranking.order)]
    return Table.of(
        "costs",
        "What the arms cost",
        [(arm, one, one.serving or serving) for arm, one in costs],
        [
            ("Arm", lambda row: study.label(row[0])),
            ("Training", lambda row: text.duration(row[1].train_seconds)),
            ("Tokens/s", lambda row: text.count(row[1].tokens_per_second)),
            ("Evaluation", lambda row: text.duration(row[1].eval_seconds)),
            ("Peak memory", lambda row: text.gibibytes(row[1].peak_memory_mb)),
            ("Served, MiB", lambda row: text.count(row[2].weights_mb or None)),
            ("Query, ms", lambda row: text.decimal(row[2].embedding_ms, 1)),
            ("p95", lambda row: text.decimal(row[2].embedding_ms_p95, 1)),
            ("List, ms", lambda row: text.decimal(row[2].reranking_ms, 1)),
            ("p95", lambda row: text.decimal(row[2].reranking_ms_p95, 1)),
        ],
        rules=frozenset({len(specialists)}),
        notes="Means over seeds; peak memory is the largest of any run. Query: one query embedded; list: one query's "
        "candidates scored; one request at a time, with tokenisation, median and 95th percentile.",
    )


def _brief(study: StudyFolder, recovery: Recovery) -> Table:
    def score(task: Task) -> Callable[[str], str]:
        return lambda arm: text.score(found.score.mean if (found := recovery.tasks[task].arms.get(arm)) else None)

    return Table.of(
        "brief_arms",
        "arms, best first",
        [arm for arm in recovery.ranking.order if arm in recovery.arms],
        [
            ("arm", study.label),
            *((str(task), score(task)) for task in recovery.tasks),
            ("mean TIR %", lambda arm: text.decimal(recovery.arms[arm].tir.mean, 1, True)),
            ("95% interval", lambda arm: text.interval(recovery.arms[arm].tir.ci95, 1)),
        ],
    )


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
        arms_here = [found.arms[arm] for arm in arms if arm in found.arms]
        cells = [found.lost, *(cell.difference for cell in arms_here), *(cell.to_start for cell in arms_here)]
        limits = draw.span(cells, medians=20.0)  # an arm that wins most of a loss back is the point of the figure
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
    draw.legend(figure, {**handles, **draw.signs(shaded)}, columns=3)
    return figure
