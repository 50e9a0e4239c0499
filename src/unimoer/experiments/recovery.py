"""What every other joint arm wins back of what one shared adapter loses, and which arm does best.

recovery = (arm - joint_single) / (specialist - joint_single), in percent: 0 is no better than the one shared LoRA, 100
as good as a specialist. The ratio has no meaning where sharing lost nothing, so it is given only where the interval of
the loss lies above zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unimoer.config import ROUTERS
from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Array, SeedScores
from unimoer.experiments.cells import Sample, bounds, correct, number
from unimoer.experiments.results import JOINT, SPECIALIST, Scores
from unimoer.types import Task

NOTHING_LOST = "nothing lost that could be won back"
TOO_LITTLE_LOST = "too little lost to tell what was won back"


def recover(
    scores: Scores,
    arms: Sequence[str],
    routers: Mapping[str, str | None],
    metric: str,
    seeds: Sequence[int],
    replicates: int = statistics.REPLICATES,
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
        means = statistics.bootstrap_means(systems, replicates, seed)
        macro = _samples(systems, means, names)
        tasks[task] = {
            **_against_joint(macro, systems, names, task, seeds, len(arms) * len(Task), seed),
            **_ranking({arm: macro[arm] for arm in (JOINT, *arms)}, routers),
        }
        ratios[task] = {arm: macro[arm].tir(macro[SPECIALIST[task]]) for arm in (JOINT, *arms)}
        for name in names:
            one = _samples(systems, means, [name])
            family = len(arms) * len(Task) * len(names)
            datasets.setdefault(name, {})[task] = _against_joint(one, systems, [name], task, seeds, family, seed)
    correct([cell for found in tasks.values() for cell in found["arms"].values()])
    by_dataset = [cell for pair in datasets.values() for found in pair.values() for cell in found["arms"].values()]
    correct(by_dataset)
    return {
        "baseline": JOINT,
        "metric": metric,
        "families": {"primary": len(arms) * len(Task), "exploratory": len(by_dataset)},
        "tasks": tasks,
        "datasets": datasets,
        "overall": _overall(ratios, arms, routers, seeds),
    }


def ratio_interval(numerator: Array, denominator: Array, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of a ratio of two resampled differences `[B]`; None where it would reach to infinity.

    A percentile interval of numerator / denominator goes wrong as soon as some replicate's denominator is near or
    below zero: the ratio flips its sign there and lands in the opposite tail. So the test is inverted, as in Fieller's
    theorem: the interval holds every ratio r for which the replicates of numerator - r denominator do not lie to
    `confidence` on one side of zero. With all denominators positive the two are the same.
    """
    count = len(denominator)
    tail = count * (1.0 - confidence) / 2.0
    moving = denominator != 0.0
    ratios = numerator[moving] / denominator[moving]
    order = np.argsort(ratios, kind="stable")
    ratios = ratios[order]
    # How many replicates have numerator <= r denominator, as r passes each one's own ratio: upwards where its
    # denominator is positive, downwards where it is negative.
    before = int(np.count_nonzero(denominator < 0.0) + np.count_nonzero((~moving) & (numerator <= 0.0)))
    after = before + np.cumsum(np.sign(denominator[moving][order]).astype(np.int64))
    if not len(ratios) or before >= tail or after[-1] <= count - tail:
        return None
    low = int(np.argmax(after >= tail))
    high = int(np.flatnonzero(after <= count - tail)[-1]) + 1 if (after <= count - tail).any() else low
    return float(ratios[low]), float(ratios[max(low, high)])


def _samples(
    systems: Mapping[str, SeedScores], means: Mapping[str, Mapping[str, Array]], names: Sequence[str]
) -> dict[str, Sample]:
    return {system: Sample.of(scores, means[system], names) for system, scores in systems.items()}


def _against_joint(
    samples: Mapping[str, Sample],
    systems: Mapping[str, SeedScores],
    names: Sequence[str],
    task: Task,
    seeds: Sequence[int],
    family: int,
    resampling_seed: int,
) -> dict[str, Any]:
    """Every arm beside the shared LoRA and the specialist, on the macro average over `names`."""
    # The smallest p that n draws can give is 1 / (n + 1): corrected for a large family it must still be small.
    draws = max(statistics.REPLICATES, 100 * family)
    specialist, joint = samples[SPECIALIST[task]], samples[JOINT]
    lost = specialist - joint
    cells: dict[str, Any] = {}
    for arm in [arm for arm in samples if arm not in (SPECIALIST[task], JOINT)]:
        gained = samples[arm] - joint
        system, shared = ({name: systems[key][name] for name in names} for key in (arm, JOINT))
        cells[arm] = {
            "mean": number(samples[arm].mean),
            "ci95": bounds(samples[arm].interval()),
            "tir": samples[arm].tir(specialist).cell(seeds),
            "difference": gained.cell(seeds),
            "p_value": statistics.sign_flip_test(system, shared, draws, resampling_seed),
            "recovery": _recovery(gained, lost),
        }
    return {"lost": lost.cell(seeds), "arms": cells}


def _recovery(gained: Sample, lost: Sample) -> dict[str, Any]:
    """The ratio of the two means, not the mean of a ratio by seed: a seed that lost nothing has none."""
    interval = ratio_interval(gained.replicates, lost.replicates)
    if lost.interval().low > 0.0 and interval is not None:
        return {"mean": 100.0 * gained.mean / lost.mean, "ci95": [100.0 * end for end in interval], "reason": None}
    return {"mean": None, "ci95": [None, None], "reason": TOO_LITTLE_LOST if lost.mean > 0.0 else NOTHING_LOST}


def _overall(
    ratios: Mapping[Task, Mapping[str, Sample]],
    arms: Sequence[str],
    routers: Mapping[str, str | None],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Arms by the mean of both tasks' ratios; the tasks share their draws, so their replicates belong together."""
    means = {
        arm: Sample(
            np.mean([found[arm].by_seed for found in ratios.values()], axis=0),
            np.mean([found[arm].replicates for found in ratios.values()], axis=0),
        )
        for arm in (JOINT, *arms)
    }
    # Turned round, so that more is better as it is for scores.
    kept = {arm: Sample(-sample.by_seed, -sample.replicates) for arm, sample in means.items()}
    return {
        "arms": {
            arm: {"tir": sample.cell(seeds), "difference": (means[JOINT] - sample).cell(seeds)}
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
    confidence = 1.0 - 0.05 / max(1, len(rivals))
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
    """Whether gradients train a router of this type: what none trains is what a learned one has to beat."""
    return router is not None and ROUTERS[router]().learned
