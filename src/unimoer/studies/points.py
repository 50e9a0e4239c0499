"""Curves and grids: every arm at every point of a study, against the specialist of the same point."""

from __future__ import annotations

from collections.abc import Mapping

from unimoer.config import BM25, JOINT, SPECIALIST
from unimoer.evaluation.statistics import Sample
from unimoer.schema.plan import ArmPlan
from unimoer.schema.results import Point, Points
from unimoer.studies.cells import cell, number, samples
from unimoer.studies.evidence import Evidence
from unimoer.studies.recovery import recovered
from unimoer.types import Task


def estimate_points(evidence: Evidence, x: str) -> Points:
    """Scores, interference and recovery at every variant and step, with the seeds that are there for it.

    A point is made as soon as one seed of the arm is there; its ratio where the specialist has the same seeds.
    """
    found: list[Point] = []
    for variant, plans in evidence.plan.declared.arms.items():
        for step in [*evidence.plan.declared.checkpoints, None]:
            for task in Task:
                found += _points(evidence, variant, step, task, plans)
    return Points(x=x, points=found)


def _points(
    evidence: Evidence, variant: str, step: int | None, task: Task, plans: Mapping[str, ArmPlan]
) -> list[Point]:
    table, metric = evidence.table(variant, step), evidence.metric
    names = table.datasets(task)
    arms = [name for name, plan in plans.items() if task in plan.tasks]
    # An arm whose run is shorter than this step has been scored at its end alone.
    there = {arm: [s for s in evidence.seeds if names and table.covers(arm, task, [s])] for arm in arms}
    specialist, result = SPECIALIST[task], []
    for arm in (name for name in arms if there[name]):
        seeds = [seed for seed in there[arm] if seed in there.get(specialist, [])] or there[arm]
        paired = specialist in there and set(seeds) <= set(there[specialist])
        systems = [arm, BM25, *([specialist] if paired else [])]
        if paired and set(seeds) <= set(there.get(JOINT, [])):
            systems.append(JOINT)
        matrices = {name: table.matrices(name, task, metric, seeds) for name in dict.fromkeys(systems)}
        macro = samples(matrices).macro
        result.append(_point(variant, arm, step, task, plans[arm], seeds, macro))
    return result


def _point(
    variant: str, arm: str, step: int | None, task: Task, plan: ArmPlan, seeds: list[int], macro: Mapping[str, Sample]
) -> Point:
    specialist, joint = macro.get(SPECIALIST[task]), macro.get(JOINT)
    ratio = macro[arm].tir(specialist) if specialist is not None and arm != SPECIALIST[task] else None
    won = None
    if specialist is not None and joint is not None and arm not in (JOINT, SPECIALIST[task]):
        won = recovered(macro[arm] - joint, specialist - joint)
    return Point(
        variant=variant,
        arm=arm,
        step=step,
        task=task,
        x=coordinates(plan, task, step),
        seeds=seeds,
        score=cell(macro[arm], seeds),
        tir=None if ratio is None else cell(ratio, seeds),
        recovery=won,
        to_bm25=cell(macro[arm] - macro[BM25], seeds),
        mde=None if ratio is None else number(ratio.mde()),
    )


def coordinates(plan: ArmPlan, task: Task, step: int | None) -> dict[str, float]:
    """Where a point lies: steps of the task, parameters, layers, experts, and the mean rank of each expert."""
    ranks = {name: sum(r) / len(r) if isinstance(r, list) else float(r) for name, r in plan.experts.items()}
    trainable = plan.adapter_parameters + plan.router_parameters
    return {
        "steps": float(plan.steps.get(task, 0) if step is None else step),
        "layers": float(plan.layers),
        "trainable": float(trainable),
        "total": float(plan.base_parameters + trainable),
        "experts": float(len(ranks)),
        "rank": sum(ranks.values()),
        **{f"rank_{name}": rank for name, rank in ranks.items()},
    }
