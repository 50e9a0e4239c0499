"""What every other joint arm wins back of what one shared adapter loses, and which arm does best.

recovery = (arm - joint_single) / (specialist - joint_single), in percent: 0 is no better than the one shared LoRA, 100
as good as a specialist. The ratio has no meaning where sharing lost nothing, so it is given only where the interval of
the loss lies above zero. An arm that learns its routing is also compared with its own start, left untrained: what it
does better than that is what learning brought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unimoer.config import JOINT, SPECIALIST, START
from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Sample
from unimoer.schema.base import Cell
from unimoer.schema.decision import Lead
from unimoer.schema.results import ArmTask, OverallArm, Ranking, Recovered, Recovery, TaskRecovery
from unimoer.studies.cells import cell, family, number, samples
from unimoer.studies.evidence import Evidence
from unimoer.types import Task

NOTHING_LOST = "nothing lost that could be won back"
TOO_LITTLE_LOST = "too little lost to tell what was won back"

PRIMARY, BY_COLLECTION = "arms against joint_single", "arms against joint_single by collection"


def families(arms: Sequence[str], datasets: Sequence[str]) -> dict[str, list[str]]:
    """The comparisons that `recover` corrects together."""
    return {
        PRIMARY: [f"{task} {arm}" for arm in arms for task in Task],
        BY_COLLECTION: [f"{task} {name} {arm}" for arm in arms for name in datasets for task in Task],
    }


def recover(evidence: Evidence, variant: str | None = None) -> Recovery | None:
    """All joint arms beside `joint_single`; None where there are none.

    `arms` judges an arm by the mean of its two interference ratios, because one model has to serve both tasks.

    Raises:
        UserError: an arm, a seed or a collection is missing.
    """
    arms, seeds = evidence.joint_arms(variant), evidence.seeds
    if not arms:
        return None
    declared, table = evidence.plan.declared, evidence.table(variant)
    learned = _learned(evidence, arms, variant)
    tasks: dict[Task, TaskRecovery] = {}
    datasets: dict[str, dict[Task, dict[str, ArmTask]]] = {}
    ratios: dict[Task, dict[str, Sample]] = {}
    for task in Task:
        systems = {arm: table.matrices(arm, task, evidence.metric, seeds) for arm in (SPECIALIST[task], JOINT, *arms)}
        found = samples(systems)
        macro = found.macro
        tasks[task] = TaskRecovery(
            lost=cell(macro[SPECIALIST[task]] - macro[JOINT], seeds),
            arms=_against_joint(task, macro, arms, seeds),
            ranking=_ranking({arm: macro[arm] for arm in (JOINT, *arms)}, learned),
        )
        ratios[task] = {arm: macro[arm].tir(macro[SPECIALIST[task]]) for arm in (JOINT, *arms)}
        for name, one in found.by_dataset.items():
            datasets.setdefault(name, {})[task] = _against_joint(task, one, arms, seeds)
    corrected = _correct(
        {f"{task} {arm}": one for task, found in tasks.items() for arm, one in found.arms.items()},
        declared.families.get(PRIMARY, []),
    )
    tasks = {
        task: found.model_copy(update={"arms": {arm: corrected[f"{task} {arm}"] for arm in found.arms}})
        for task, found in tasks.items()
    }
    by_dataset = _correct(
        {
            f"{task} {name} {arm}": one
            for name, pair in datasets.items()
            for task, found in pair.items()
            for arm, one in found.items()
        },
        declared.families.get(BY_COLLECTION, []),
    )
    datasets = {
        name: {task: {arm: by_dataset[f"{task} {name} {arm}"] for arm in found} for task, found in pair.items()}
        for name, pair in datasets.items()
    }
    overall = {arm: Sample.average([found[arm] for found in ratios.values()]) for arm in (JOINT, *arms)}
    return Recovery(
        baseline=JOINT,
        families={name: len(declared.families.get(name, [])) for name in (PRIMARY, BY_COLLECTION)},
        tasks=tasks,
        datasets=datasets,
        arms={
            arm: OverallArm(
                tir=cell(sample, seeds),
                difference=cell(overall[JOINT] - sample, seeds),
                # Turned round: a ratio that is lower than the start's is better.
                to_start=_to_start(arm, {name: -one for name, one in overall.items()}, seeds),
            )
            for arm, sample in overall.items()
        },
        # Turned round, so that more is better as it is for scores.
        ranking=_ranking({arm: -sample for arm, sample in overall.items()}, learned),
    )


def recovered(gained: Sample, lost: Sample) -> Recovered:
    """The ratio of the two means, not the mean of a ratio by seed: a seed that lost nothing has none."""
    if lost.interval().low > 0.0:
        ratio = gained.ratio(lost, scale=100.0)
        interval = ratio.interval()
        return Recovered(mean=number(ratio.mean), ci95=(number(interval.low), number(interval.high)))
    return Recovered(reason=TOO_LITTLE_LOST if lost.mean > 0.0 else NOTHING_LOST)


def _against_joint(
    task: Task, found: Mapping[str, Sample], arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, ArmTask]:
    """Every arm beside the shared LoRA and the specialist."""
    specialist, joint = found[SPECIALIST[task]], found[JOINT]
    cells = {}
    for arm in arms:
        gained = found[arm] - joint
        cells[arm] = ArmTask(
            score=cell(found[arm], seeds),
            tir=cell(found[arm].tir(specialist), seeds),
            difference=cell(gained, seeds),
            to_start=_to_start(arm, found, seeds),
            recovery=recovered(gained, specialist - joint),
            p_value=number(gained.p_value()),
            p_models=number(gained.p_models()),
            mde=number(gained.mde()),
        )
    return cells


def _to_start(arm: str, found: Mapping[str, Sample], seeds: Sequence[int]) -> Cell | None:
    null = f"{arm}{START}"
    return cell(found[arm] - found[null], seeds) if null in found else None


def _correct(cells: Mapping[str, ArmTask], declared: Sequence[str]) -> dict[str, ArmTask]:
    adjusted = family({name: one.p_value for name, one in cells.items()}, declared)
    return {
        name: one.model_copy(update={"p_holm": adjusted[name].holm, "p_bonferroni": adjusted[name].bonferroni})
        for name, one in cells.items()
    }


def _learned(evidence: Evidence, arms: Sequence[str], variant: str | None) -> list[str]:
    """Arms whose routing was learned: their routers' parameters moved."""
    plans = evidence.plan.declared.arms[evidence.variants[0] if variant is None else variant]
    found = []
    for arm in arms:
        moved = [run.status.training.router_moved for run in evidence.arm_runs(arm, variant) if run.status.training]
        if any(value for value in moved) or (not moved and plans[arm].learned):
            found.append(arm)
    return found


def _ranking(found: Mapping[str, Sample], learned: Sequence[str]) -> Ranking:
    """Arms from best to worst, how far the first leads, and which of the others the intervals cannot tell from it.

    The first was chosen for coming out first, so each of its k leads is judged by an interval widened to 1 - 0.05 / k.
    """
    order = sorted(found, key=lambda arm: -np.inf if np.isnan(found[arm].mean) else found[arm].mean, reverse=True)
    best, rivals = order[0], order[1:]
    confidence = statistics.widened(len(rivals))
    # Written the other way round, an undefined interval would count as a clear lead.
    tied = [arm for arm in rivals if not (found[best] - found[arm]).interval(confidence).low > 0.0]
    routed = [arm for arm in order if arm in learned]
    others = [arm for arm in order if arm not in learned]
    return Ranking(
        order=order,
        lead=_lead(found, best, rivals[0]) if rivals else None,
        not_told_apart=tied,
        confidence=confidence,
        learned=_lead(found, routed[0], others[0]) if routed and others else None,
    )


def _lead(found: Mapping[str, Sample], arm: str, rival: str) -> Lead:
    lead = found[arm] - found[rival]
    interval = lead.interval()
    return Lead(arm=arm, rival=rival, mean=number(lead.mean), ci95=(number(interval.low), number(interval.high)))
