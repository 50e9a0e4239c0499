"""What every other joint arm wins back of what one shared adapter loses, and which arm does best.

recovery = (arm - joint_single) / (specialist - joint_single), in percent: 0 is no better than the one shared LoRA, 100
as good as a specialist. The ratio has no meaning where sharing lost nothing, so it is given only where the interval of
the loss lies above zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Sample, SeedScores, widened
from unimoer.experiments.cells import bounds, cell, correct, number
from unimoer.experiments.results import JOINT, SPECIALIST, Scores
from unimoer.types import Task

NOTHING_LOST = "nothing lost that could be won back"
TOO_LITTLE_LOST = "too little lost to tell what was won back"
NOT_LEARNED = ("hard", "hard_shared", "similarity", "uniform", "random_frozen")
"""Types of routers that no gradient trains: what a learned one has to beat."""


def recover(
    scores: Scores,
    arms: Sequence[str],
    routers: Mapping[str, str | None],
    metric: str,
    seeds: Sequence[int],
    draws: int = statistics.DRAWS,
    seed: int = statistics.SEED,
) -> dict[str, Any]:
    """The content of `recovery` in results.json: a deterministic function of the scores.

    `arms` are the joint arms beside `joint_single`; `routers` names the type of each one's router, where it is known.
    p-values are those of arm against `joint_single`, Holm-corrected over two families: arms x tasks on the averages
    (primary), and arms x tasks x data sets (exploratory). `overall` judges an arm by the mean of its two interference
    ratios, because one model has to serve both tasks.

    Raises UserError where an arm, a seed or a data set is missing.
    """
    tasks: dict[str, dict[str, Any]] = {}
    datasets: dict[str, dict[str, Any]] = {}
    ratios: dict[Task, dict[str, Sample]] = {}
    for task in Task:
        names = scores.datasets(task)
        systems: dict[str, SeedScores] = {
            arm: {name: scores.matrix(arm, task, name, metric, seeds) for name in names}
            for arm in (SPECIALIST[task], JOINT, *arms)
        }
        macro = _samples(systems, names)
        tasks[task] = {
            **_against_joint(macro, task, seeds, draws, seed),
            **_ranking({arm: macro[arm] for arm in (JOINT, *arms)}, routers),
        }
        ratios[task] = {arm: macro[arm].tir(macro[SPECIALIST[task]]) for arm in (JOINT, *arms)}
        for name in names:
            datasets.setdefault(name, {})[task] = _against_joint(_samples(systems, [name]), task, seeds, draws, seed)
    correct({f"{task}/{arm}": found for task, cells in tasks.items() for arm, found in cells["arms"].items()})
    by_dataset = {
        f"{name}/{task}/{arm}": found
        for name, pair in datasets.items()
        for task, cells in pair.items()
        for arm, found in cells["arms"].items()
    }
    correct(by_dataset)
    return {
        "baseline": JOINT,
        "metric": metric,
        "families": {"primary": len(arms) * len(Task), "exploratory": len(by_dataset)},
        "tasks": tasks,
        "datasets": datasets,
        "overall": _overall(ratios, arms, routers, seeds),
    }


def _samples(systems: Mapping[str, SeedScores], names: Sequence[str]) -> dict[str, Sample]:
    return {system: Sample.of(scores, names) for system, scores in systems.items()}


def _against_joint(
    samples: Mapping[str, Sample],
    task: Task,
    seeds: Sequence[int],
    draws: int,
    resampling_seed: int,
) -> dict[str, Any]:
    """Every arm beside the shared LoRA and the specialist."""
    specialist, joint = samples[SPECIALIST[task]], samples[JOINT]
    lost = specialist - joint
    cells: dict[str, Any] = {}
    for arm in [arm for arm in samples if arm not in (SPECIALIST[task], JOINT)]:
        gained = samples[arm] - joint
        cells[arm] = {
            "mean": number(samples[arm].mean),
            "ci95": bounds(samples[arm].interval()),
            "tir": cell(samples[arm].tir(specialist), seeds),
            "difference": cell(gained, seeds),
            "p_value": gained.p_value(),
            "p_models": gained.p_models(draws, resampling_seed),
            "recovery": _recovery(gained, lost),
        }
    return {"lost": cell(lost, seeds), "arms": cells}


def _recovery(gained: Sample, lost: Sample) -> dict[str, Any]:
    """The ratio of the two means, not the mean of a ratio by seed: a seed that lost nothing has none."""
    if lost.interval().low > 0.0:
        recovery = gained.ratio(lost, 100.0)
        return {"mean": recovery.mean, "ci95": bounds(recovery.interval()), "reason": None}
    return {"mean": None, "ci95": [None, None], "reason": TOO_LITTLE_LOST if lost.mean > 0.0 else NOTHING_LOST}


def _overall(
    ratios: Mapping[Task, Mapping[str, Sample]],
    arms: Sequence[str],
    routers: Mapping[str, str | None],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Arms by the mean of both tasks' ratios; the tasks share their data sets' queries and their seeds."""
    means = {arm: Sample.average([found[arm] for found in ratios.values()]) for arm in (JOINT, *arms)}
    # Turned round, so that more is better as it is for scores.
    kept = {arm: -sample for arm, sample in means.items()}
    return {
        "arms": {
            arm: {"tir": cell(sample, seeds), "difference": cell(means[JOINT] - sample, seeds)}
            for arm, sample in means.items()
        },
        **_ranking(kept, routers),
    }


def _ranking(samples: Mapping[str, Sample], routers: Mapping[str, str | None]) -> dict[str, Any]:
    """Arms from best to worst, how far the first leads, and which of the others the intervals cannot tell from it.

    The first was chosen for coming out first, so each of its k leads is judged by an interval widened to 1 - 0.05 / k.
    """
    order = sorted(samples, key=_defined(samples), reverse=True)
    best, rivals = order[0], order[1:]
    confidence = widened(len(rivals))
    # Written the other way round, an undefined interval would count as a clear lead.
    tied = [arm for arm in rivals if not (samples[best] - samples[arm]).interval(confidence).low > 0.0]
    learned = [arm for arm in order if _is_learned(routers.get(arm))]
    others = [arm for arm in order if arm not in learned]
    return {
        "ranking": order,
        "lead": _lead(samples, best, rivals[0]) if rivals else None,
        "not_told_apart": tied,
        "confidence": confidence,
        "learned_router": _lead(samples, learned[0], others[0]) if learned and others else None,
    }


def _defined(samples: Mapping[str, Sample]) -> Callable[[str], float]:
    """Sort key: the mean, undefined ones last; equal ones stay in the order given."""
    return lambda arm: -np.inf if np.isnan(samples[arm].mean) else samples[arm].mean


def _lead(samples: Mapping[str, Sample], arm: str, rival: str) -> dict[str, Any]:
    lead = samples[arm] - samples[rival]
    return {"arm": arm, "rival": rival, "mean": number(lead.mean), "ci95": bounds(lead.interval())}


def _is_learned(router: str | None) -> bool:
    return router is not None and router not in NOT_LEARNED
