"""The verdict: does one adapter for both tasks cost either task anything against its specialist?

Task interference ratio (TIR) = (specialist - joint) / specialist on one metric, in percent; positive means that the
joint model is worse. The rule reads point estimates against two lines fixed before the runs. What whole intervals
support stands beside it: an estimate of 2.1% with an interval from -1% to 5% passes the rule and proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from unimoer.config import BM25, JOINT, RANDOM, SPECIALIST, UNTRAINED
from unimoer.errors import UserError
from unimoer.evaluation.statistics import Sample
from unimoer.schema.decision import (
    PLAIN,
    Conflicts,
    Decision,
    Method,
    Needed,
    Ratio,
    Region,
    Supported,
    TaskDecision,
    Useful,
    Verdict,
)
from unimoer.schema.plan import Criterion
from unimoer.studies.cells import cell, family, number, samples
from unimoer.studies.conflicts import summarise_conflicts
from unimoer.studies.evidence import Evidence
from unimoer.studies.planning import declaration_hash
from unimoer.types import Task

Name = TypeVar("Name", bound=str)

INTERVAL = "95%, in closed form; ratios by Fieller's method (docs/statistics.md)"
TEST = "two-sided, dual to the interval; p_models is a sign-flip test over queries, of these trained models only"

SEEDS_NEEDED = 3
"""Fewer say nothing about seed noise, so a verdict on them is preliminary."""


def verdict(criterion: Criterion, ratios: Iterable[float | None]) -> Verdict:
    """PASS, FAIL or MARGINAL of the point estimates; an undefined one (None) can support neither."""
    known = list(ratios)
    if any(ratio is not None and ratio >= criterion.pass_at for ratio in known):
        return "PASS"
    if all(ratio is not None and ratio < criterion.fail_below for ratio in known):
        return "FAIL"
    return "MARGINAL"


def region(criterion: Criterion, low: float, high: float) -> Region:
    """Where a whole interval lies: above_pass, below_fail, between, or which line it straddles."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    if low >= criterion.pass_at:
        return "above_pass"
    if high < criterion.fail_below:
        return "below_fail"
    if low >= criterion.fail_below:
        return "between" if high < criterion.pass_at else "straddles_pass"
    return "straddles_fail" if high < criterion.pass_at else "straddles_both"


def supported(regions: Sequence[Region]) -> Supported:
    """What whole intervals say: above the pass line on some task, below the fail line on both, or neither."""
    if "above_pass" in regions:
        return "pass"
    return "fail" if all(found == "below_fail" for found in regions) else "inconclusive"


def decide(evidence: Evidence, variant: str | None = None) -> Decision:
    """The content of decision.json: a function of the plan and the scores, with no other time, date or path in it.

    p-values are corrected over the families that the plan declares: `interference`, the two tasks, and
    `interference by collection`.

    Raises:
        UserError: an arm, a seed or a collection is missing.
    """
    declared = evidence.plan.declared
    table, seeds, metric = evidence.table(variant), evidence.seeds, declared.criterion.metric
    tasks: dict[Task, TaskDecision] = {}
    datasets: dict[str, dict[Task, TaskDecision]] = {}
    over = ""
    for task in Task:
        names = table.datasets(task)
        if not names:
            raise UserError(f"no {task} scores of '{BM25}': finish the study")
        roles = {"specialist": SPECIALIST[task], "joint": JOINT, "untrained": UNTRAINED, "bm25": BM25, "random": RANDOM}
        systems = {role: table.matrices(arm, task, metric, seeds) for role, arm in roles.items()}
        found = samples(systems)
        tasks[task] = _compare(task, found.macro, declared.criterion, seeds)
        over = tasks[task].tir.over
        for name in names:
            datasets.setdefault(name, {})[task] = _compare(task, found.by_dataset[name], declared.criterion, seeds)
    tasks = _corrected(tasks, declared.families["interference"])
    by_dataset = {f"{task} {name}": one for name, pair in datasets.items() for task, one in pair.items()}
    corrected = _corrected(by_dataset, declared.families["interference by collection"])
    datasets = {name: {task: corrected[f"{task} {name}"] for task in pair} for name, pair in datasets.items()}

    reasons = _preliminary_reasons(tasks, len(seeds))
    plan = evidence.plan
    support = supported([found.tir.region for found in tasks.values()])
    return Decision(
        study=declared.study,
        name=plan.name,
        verdict=verdict(declared.criterion, [found.tir.mean for found in tasks.values()]),
        supported=support,
        plain=PLAIN[support],
        useful=all(found.useful.ok for found in tasks.values()),
        preliminary=bool(reasons),
        preliminary_reasons=reasons,
        criterion=declared.criterion,
        frozen=declaration_hash(declared) if plan.amendments else plan.frozen,
        time=plan.amendments[-1].time if plan.amendments else plan.time,
        amendments=plan.amendments,
        seeds=seeds,
        budget=declared.budget,
        tasks=tasks,
        datasets=datasets,
        gradient_conflicts=_conflicts(evidence, variant),
        method=Method(
            interval=INTERVAL,
            over=over,
            test=TEST,
            families={name: len(members) for name, members in declared.families.items()},
        ),
    )


def families(datasets: Sequence[str]) -> dict[str, list[str]]:
    """The comparisons that a verdict corrects together."""
    return {
        "interference": [task.value for task in Task],
        "interference by collection": [f"{task} {name}" for name in datasets for task in Task],
    }


def _compare(task: Task, found: Mapping[str, Sample], criterion: Criterion, seeds: Sequence[int]) -> TaskDecision:
    """One row of the verdict: the average over collections, or one of them."""
    specialist, joint = found["specialist"], found["joint"]
    ratio, gain, difference = joint.tir(specialist), specialist - found["untrained"], specialist - joint
    interval = ratio.interval()
    where = region(criterion, interval.low, interval.high)
    return TaskDecision(
        **{role: cell(sample, seeds) for role, sample in found.items()},
        tir=Ratio(
            **cell(ratio, seeds).model_dump(),
            region=where,
            over=interval.over,
            mde=number(ratio.mde()),
            needed=_needed(ratio, criterion, where),
        ),
        difference=cell(difference, seeds),
        gain=cell(gain, seeds),
        useful=_useful(task, specialist - found["bm25"], seeds),
        p_value=number(difference.p_value()),
        p_models=number(difference.p_models()),
        # Interference is a share of what was learned on top of the base: with nothing learned there is nothing to lose.
        status="ok" if gain.interval().low > 0.0 else "underpowered",
        queries=sum(values.shape[1] for values in specialist.terms.values()),
    )


def _useful(task: Task, over_bm25: Sample, seeds: Sequence[int]) -> Useful:
    """BM25 is the order that a reranker is given, and what an embedding has to reach to be worth its index.

    Reaching is judged by the estimate, improving by the whole interval.
    """
    found = cell(over_bm25, seeds)
    if task is Task.EMBEDDING:
        return Useful(claim="the embedding specialist reaches BM25", difference=found, ok=over_bm25.mean >= 0.0)
    claim = "the reranking specialist improves the order it is given"
    return Useful(claim=claim, difference=found, ok=over_bm25.interval().low > 0.0)


def _needed(ratio: Sample, criterion: Criterion, where: Region) -> Needed | None:
    """What would put the interval on one side of the line that the estimate is nearest to."""
    if where in ("above_pass", "below_fail", "undefined"):
        return None
    lines = (criterion.fail_below, criterion.pass_at)
    line = min(lines, key=lambda value: abs(value - ratio.mean))
    found = ratio.required(line)
    return Needed(queries=found.queries, seeds=found.seeds)


def _corrected(cells: Mapping[Name, TaskDecision], declared: Sequence[str]) -> dict[Name, TaskDecision]:
    adjusted = family({str(name): found.p_value for name, found in cells.items()}, declared)
    return {
        name: found.model_copy(
            update={"p_holm": adjusted[str(name)].holm, "p_bonferroni": adjusted[str(name)].bonferroni}
        )
        for name, found in cells.items()
    }


def _preliminary_reasons(tasks: Mapping[Task, TaskDecision], seeds: int) -> list[str]:
    reasons = [
        f"{task}: the specialist does not beat the untrained model beyond doubt (gain {_signed(found.gain.mean)}, "
        f"95% interval {_signed(found.gain.low)} to {_signed(found.gain.high)})"
        for task, found in tasks.items()
        if found.status == "underpowered"
    ]
    if seeds < SEEDS_NEEDED:
        missing = "the intervals hold no seed noise" if seeds == 1 else "seed noise is barely known"
        reasons.append(f"{seeds} {'seed' if seeds == 1 else 'seeds'} of at least {SEEDS_NEEDED}: {missing}")
    return reasons


def _signed(value: float | None) -> str:
    """One query has no spread, and so no bounds."""
    return "unknown" if value is None else f"{value:+.3f}"


def _conflicts(evidence: Evidence, variant: str | None) -> Conflicts | None:
    lines = [line for run in evidence.arm_runs(JOINT, variant) for line in run.conflicts()]
    return summarise_conflicts(lines)
