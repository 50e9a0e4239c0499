"""The decision: what its intervals support in plain words, the rule's verdict, and whether the models are of use."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unimoer.report import draw, text
from unimoer.report.section import Card, Drawing, Lead, Note, Section, Strip
from unimoer.report.study import StudyFolder
from unimoer.report.table import Cell, Table, percentage, scored
from unimoer.schema import Decision, TaskDecision
from unimoer.schema.plan import Criterion
from unimoer.types import Task

_USELESS = {
    Task.EMBEDDING: ("does not reach BM25", "is not shown to reach BM25"),
    Task.RERANKING: ("makes the order it is given worse", "is not shown to improve the order it is given"),
}
"""By task: where the whole interval of the difference lies below 0, and where it does not."""


def build(study: StudyFolder) -> Section | None:
    decision = study.decision
    if decision is None:
        return None
    lead = Lead(
        headline(decision),
        decision.verdict,
        decision.preliminary_reasons if decision.preliminary else [],
        [_rule(decision), *(_task(decision, task) for task in decision.tasks)],
    )
    return Section(
        "Interference by task and collection",
        cards=[_card(decision, task) for task in decision.tasks],
        drawings=[
            Drawing(
                "interference",
                "Task interference ratio",
                f"Share of its specialist's {study.metric_label} that a task loses in the joint model, with 95% "
                f"intervals; left of 0 the joint model is better. Dashed: the lines of the criterion. {draw.FILLED} "
                f"{draw.BAND}" + (" Ticks below the average: single seeds." if len(study.seeds) > 1 else ""),
                partial(_draw, study, decision),
            )
        ],
        tables=[_table(study, decision)],
        notes=_notes(study, decision),
        lead=lead,
        brief=[_brief(study, decision)],
    )


def headline(decision: Decision) -> str:
    """The claim that whole intervals support, and at once what it is worth if the specialists are not."""
    reserves = []
    for task, found in decision.tasks.items():
        high = found.useful.difference.high
        if found.status == "underpowered":
            reserves.append(f"the {task} specialist is not shown to have learned anything")
        elif not found.useful.ok:
            reserves.append(f"the {task} specialist {_USELESS[task][0 if high is not None and high < 0 else 1]}")
    claim = decision.plain[:1].upper() + decision.plain[1:]
    link = ";" if decision.supported == "inconclusive" else ", but"
    return f"{claim}{link} {text.listed(reserves)}" if reserves else claim


def _rule(decision: Decision) -> str:
    ratios = text.listed([f"{text.percent(found.tir.mean, True)} ({task})" for task, found in decision.tasks.items()])
    if decision.supported == decision.verdict.lower():
        support = "The 95% intervals support it."
    elif decision.supported == "inconclusive":
        support = "The 95% intervals do not settle it."
    else:
        support = f"Whole 95% intervals support {decision.supported.upper()} instead."
    return f"The rule gives {decision.verdict} on the point estimates of the interference ratio, {ratios}. {support}"


def _task(decision: Decision, task: Task) -> str:
    found = decision.tasks[task]
    sentences = [f"{task.capitalize()}: TIR {text.ratio(found.tir)}."]
    if found.tir.mde is not None:
        sentences.append(f"Minimum detectable effect, with a power of 80%: {found.tir.mde:.1f} points.")
    if found.tir.needed is not None:
        needed = found.tir.needed
        queries, seeds = needed.queries, needed.seeds
        ways = [] if queries is None else [f"{queries:,} test queries in every collection with the same seeds"]
        ways += [] if seeds is None else [f"{seeds:,} seeds with the same queries"]
        sentences.append(
            f"Settling it takes about {' or '.join(ways)}."
            if ways
            else "Neither more queries nor more seeds alone would settle it."
        )
    if found.status == "underpowered":
        sentences.append("The specialist does not clearly beat the untrained model, so the ratio says little.")
    return " ".join(sentences)


def _claim(found: TaskDecision, criterion: Criterion) -> str:
    """What the interval alone supports about the cost of sharing."""
    fail, passes = f"{criterion.fail_below:g}%", f"{criterion.pass_at:g}%"
    if found.status == "underpowered":
        return "too weak to judge"
    if found.tir.high is not None and found.tir.high < 0:
        return "gains from sharing"
    return {
        "above_pass": f"costs {passes} or more",
        "straddles_pass": f"costs {fail} or more",
        "between": f"costs {fail} to {passes}",
        "straddles_fail": f"costs less than {passes}",
        "below_fail": f"costs less than {fail}",
    }.get(found.tir.region, "not settled")


def _card(decision: Decision, task: Task) -> Card:
    found, criterion = decision.tasks[task], decision.criterion
    useful = found.useful
    answer = (
        "yes"
        if useful.ok
        else "no"
        if useful.difference.high is not None and useful.difference.high < 0
        else "not shown"
    )
    rows = [("BM25", found.bm25, False), ("Random order", found.random, False), ("Untrained", found.untrained, False)]
    rows += [("Specialist", found.specialist, False), ("Joint", found.joint, False)]
    rows += [("Specialist − joint", found.difference, True), ("Specialist − untrained", found.gain, True)]
    return Card(
        f"{task.capitalize()}: sharing one adapter",
        _claim(found, criterion),
        _strip(decision, task),
        f"TIR {text.ratio(found.tir)}, over {found.tir.over}. Useful: {useful.claim}? {answer.capitalize()}: "
        f"{scored(useful.difference, signed=True)}.",
        [(label, str(scored(cell, signed).text), scored(cell, signed).interval) for label, cell, signed in rows]
        + [("p, Holm-corrected", text.p_value(found.p_holm), "")],
    )


def _strip(decision: Decision, task: Task) -> Strip | None:
    ratio, criterion = decision.tasks[task].tir, decision.criterion
    if ratio.mean is None or ratio.low is None or ratio.high is None:
        return None
    ends = [abs(end) for found in decision.tasks.values() for end in found.tir.ci95 if end is not None]
    limit = 1.12 * max([*ends, 2.0 * criterion.pass_at])

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / limit)), 2)

    return Strip(
        label=f"TIR {text.ratio(ratio)}",
        low=place(ratio.low),
        high=place(ratio.high),
        mean=place(ratio.mean),
        zero=50.0,
        marks=[(place(line), f"{line:g}%") for line in (criterion.fail_below, criterion.pass_at)],
        undetectable=None if ratio.mde is None else (place(-ratio.mde), place(ratio.mde)),
    )


def _table(study: StudyFolder, decision: Decision) -> Table:
    by_task = {
        task: [(name, found[task]) for name, found in decision.datasets.items() if task in found]
        for task in decision.tasks
    }
    rows = [
        (task if name == "Average" else "", name, cell)
        for task, average in decision.tasks.items()
        for name, cell in [("Average", average), *by_task[task]]
    ]
    return Table.of(
        "tir",
        f"Task interference ratio on {study.metric_label}",
        rows,
        [
            ("Task", lambda row: row[0]),
            ("Collection", lambda row: row[1]),
            ("Specialist", lambda row: scored(row[2].specialist)),
            ("Joint", lambda row: scored(row[2].joint)),
            ("TIR", lambda row: percentage(row[2].tir)),
            ("MDE", lambda row: text.decimal(row[2].tir.mde, 1)),
            ("p", lambda row: text.p_value(row[2].p_value)),
            ("p (Holm)", lambda row: text.p_value(row[2].p_holm)),
            ("Gain", lambda row: scored(row[2].gain, signed=True)),
            ("Queries", lambda row: f"{row[2].queries:,}"),
        ],
        text_columns=2,
        rules=frozenset(index for index, row in enumerate(rows) if row[0] and index),
        notes="TIR = (specialist − joint) / specialist; positive: the joint model is worse. MDE: the smallest ratio "
        "that would be detected with a power of 80%. p: of specialist − joint, over queries and seeds. "
        "Gain: specialist − untrained.",
    )


def _notes(study: StudyFolder, decision: Decision) -> list[Note]:
    criterion, method = decision.criterion, decision.method
    exposure = "In the joint run each task saw the same examples in the same order as its specialist did."
    if decision.budget == "total":
        exposure = (
            "The joint run had one specialist's steps for both tasks: a loss mixes interference with having seen less."
        )
    families = text.listed([f"{number} {name}" for name, number in method.families.items()]) or "none"
    declared = f"Frozen {decision.time}, before the first run"
    if decision.amendments:
        declared = f"Amended {decision.time}, after the first run"
    notes = [
        Note(
            "Criterion",
            [
                f"PASS if the joint model loses {criterion.pass_at:g}% or more of its specialist's "
                f"{study.metric_label} on either task, FAIL if it loses less than {criterion.fail_below:g}% on both, "
                f"MARGINAL otherwise. PASS: sharing costs something. FAIL: sharing is free. {declared}; "
                f"SHA-256 of the declaration: {decision.frozen[:16]}."
            ],
        ),
        Note(
            "Interval",
            [f"{method.interval}, over {method.over}. Collections are fixed: nothing is claimed about others."],
        ),
        Note("Test", [f"{method.test}. Families of comparisons that are corrected together: {families}."]),
        Note("Exposure", [exposure], warning=decision.budget == "total"),
    ]
    if len(decision.seeds) == 1:
        one = "The intervals cover the choice of queries alone; another seed would move every score."
        notes.append(Note("One seed", [one], warning=True))
    return notes


def _brief(study: StudyFolder, decision: Decision) -> Table:
    return Table.of(
        "brief",
        f"{study.metric_label}, averaged over collections",
        decision.tasks.items(),
        [
            ("task", lambda row: row[0]),
            ("BM25", lambda row: text.score(row[1].bm25.mean)),
            ("untrained", lambda row: text.score(row[1].untrained.mean)),
            ("specialist", lambda row: text.score(row[1].specialist.mean)),
            ("joint", lambda row: text.score(row[1].joint.mean)),
            ("TIR %", lambda row: Cell(text.decimal(row[1].tir.mean, 1, signed=True), bold=True)),
            ("95% interval", lambda row: text.interval(row[1].tir.ci95, 1)),
            ("p Holm", lambda row: text.p_value(row[1].p_holm)),
        ],
    )


def _draw(study: StudyFolder, decision: Decision) -> Figure:
    names = sorted(decision.datasets)
    cells = [*decision.tasks.values(), *(found for by_task in decision.datasets.values() for found in by_task.values())]
    criterion = decision.criterion
    limits = draw.span((cell.tir for cell in cells), criterion.pass_at, criterion.fail_below)
    figure, panels = draw.row_panels(["Average", *names], row_height=0.27, margin=1.15)
    for axes, task in zip(panels, Task, strict=True):
        axes.set_title(task.capitalize(), loc="left", pad=11)
        axes.axvline(0, color=draw.MUTED, lw=0.8, zorder=1)
        # The two labels lean away from each other, so they never touch however close the lines are.
        for value, align, shift in ((criterion.fail_below, "right", -1.5), (criterion.pass_at, "left", 1.5)):
            axes.axvline(value, color=draw.INK, lw=0.7, ls=(0, (3, 2)), zorder=1)
            axes.annotate(
                f"{value:g}%",
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(shift, 1),
                textcoords="offset points",
                ha=align,
                va="bottom",
                fontsize=6.5,
            )
        for row, name in enumerate([None, *names]):
            found = study.decided(task, name)
            if found is None:
                continue
            if found.tir.mean is None:
                axes.text(0, row, "undefined", ha="center", va="center", fontsize=6.5, color=draw.MUTED)
                continue
            draw.undetectable(axes, row, found.tir.mde, limits)
            draw.whisker(axes, row, found.tir, limits, marker="D" if name is None else "o")
            seeds = [value for value in found.tir.per_seed.values() if value is not None]
            if name is None and len(seeds) > 1:
                inside = [value for value in seeds if limits[0] <= value <= limits[1]]
                axes.plot(inside, [row + 0.4] * len(inside), "|", color=draw.MUTED, ms=4, mew=0.9)
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("TIR, %   (joint worse →)", fontsize=7)
    draw.legend(figure, draw.signs(any(cell.tir.mde is not None for cell in cells)))
    return figure
