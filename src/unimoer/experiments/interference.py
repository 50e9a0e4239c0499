"""The verdict: does one adapter for both tasks cost either task anything against its specialist?

Task interference ratio (TIR) = (specialist - joint) / specialist on one metric, in percent; positive means that the
joint model is worse. The verdict reads point estimates against two lines fixed beforehand. Beside it stands what the
intervals support, because an estimate of 2.1% with an interval from -1% to 5% passes the first and proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unimoer.errors import UserError
from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Sample, SeedScores
from unimoer.experiments.cells import bounds, cell, correct
from unimoer.experiments.results import JOINT, SPECIALIST, UNTRAINED, Scores
from unimoer.types import Task

SEEDS_NEEDED = 3
"""Fewer say nothing about seed noise, so a verdict on them is preliminary."""


@dataclass(frozen=True)
class Criterion:
    """Lines in percent: PASS if either task reaches `pass_line`, FAIL if both stay below `fail_line`."""

    metric: str = "ndcg@10"
    pass_line: float = 2.0
    fail_line: float = 1.0

    @classmethod
    def from_plan(cls, values: Mapping[str, Any]) -> Criterion:
        """From plan.json's `{"metric", "pass", "fail"}`. Raises UserError for a bad one, named by its field."""
        try:
            found = cls(str(values["metric"]), float(values["pass"]), float(values["fail"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"criterion needs metric, pass and fail ({type(error).__name__}: {error})") from None
        if found.fail_line > found.pass_line:
            raise UserError(f"criterion: the fail line {found.fail_line} is above the pass line {found.pass_line}")
        return found

    def verdict(self, ratios: Iterable[float | None]) -> str:
        """PASS, FAIL or MARGINAL of the point estimates; an undefined one (None) can support neither."""
        known = list(ratios)
        if any(ratio is not None and ratio >= self.pass_line for ratio in known):
            return "PASS"
        if all(ratio is not None and ratio < self.fail_line for ratio in known):
            return "FAIL"
        return "MARGINAL"

    def region(self, low: float, high: float) -> str:
        """Where a whole interval lies: above_pass, below_fail, between, or which line it straddles."""
        if math.isnan(low) or math.isnan(high):
            return "undefined"
        if low >= self.pass_line:
            return "above_pass"
        if high < self.fail_line:
            return "below_fail"
        if low >= self.fail_line:
            return "between" if high < self.pass_line else "straddles_pass"
        return "straddles_fail" if high < self.pass_line else "straddles_both"


def decide(
    scores: Scores,
    criterion: Criterion,
    seeds: Sequence[int],
    conflicts: Sequence[Mapping[str, Any]] = (),
    joint: str = JOINT,
    draws: int = statistics.DRAWS,
    seed: int = statistics.SEED,
) -> dict[str, Any]:
    """The content of decision.json: a deterministic function of the scores, with no time, date or path in it.

    `conflicts` are the lines of the joint runs' gradient_conflicts.jsonl. Scores are in the metric's units, ratios in
    percent, undefined numbers None. p-values are corrected over two families: the two tasks (primary), and all pairs
    of task and data set (exploratory).

    Raises UserError where an arm, a seed or a data set is missing.
    """
    tasks: dict[str, dict[str, Any]] = {}
    datasets: dict[str, dict[str, Any]] = {}
    for task in Task:
        roles = {"specialist": SPECIALIST[task], "joint": joint, "untrained": UNTRAINED}
        names = scores.datasets(task)
        if not names:
            raise UserError(f"no {task} scores of arm '{SPECIALIST[task]}': finish the experiment")
        systems: dict[str, SeedScores] = {
            role: {name: scores.matrix(arm, task, name, criterion.metric, seeds) for name in names}
            for role, arm in roles.items()
        }
        tasks[task] = _compare(systems, names, criterion, seeds, draws, seed)
        for name in names:
            datasets.setdefault(name, {})[task] = _compare(systems, [name], criterion, seeds, draws, seed)
    correct({str(task): found for task, found in tasks.items()})
    correct({f"{name}/{task}": found for name, by_task in datasets.items() for task, found in by_task.items()})

    reasons = _preliminary_reasons(tasks, len(seeds))
    regions = {task: found["tir"]["region"] for task, found in tasks.items()}
    return {
        "verdict": criterion.verdict(found["tir"]["mean"] for found in tasks.values()),
        "preliminary": bool(reasons),
        "preliminary_reasons": reasons,
        "interval_verdict": {"verdict": _interval_verdict(list(regions.values())), "tasks": regions},
        "criterion": {"metric": criterion.metric, "pass": criterion.pass_line, "fail": criterion.fail_line},
        "seeds": list(seeds),
        "tasks": tasks,
        "datasets": datasets,
        "gradient_conflicts": summarise_conflicts(conflicts),
        "method": {
            "interval": "95%, two-way random effects, data sets fixed, ratios by Fieller's theorem",
            "resampled": next(iter(tasks.values()))["tir"]["resampled"],
            "draws": draws,
            "resampling_seed": seed,
            "test": "two-sided, with the variance of the interval; p_models: sign-flip randomisation over queries",
            "families": {"primary": len(tasks), "exploratory": sum(len(found) for found in datasets.values())},
        },
    }


def summarise_conflicts(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean cosine of the two tasks' gradients, how often it is negative, and its noise ceiling; overall and by layer.

    The gradients are those with respect to the frozen weights, so the numbers do not depend on how a LoRA update is
    split into its two factors. `noise_ceiling` is the largest cosine that two noisy estimates of one and the same
    gradient would show, the geometric mean of the two within-task split-half cosines: a cross-task cosine near 0 says
    little where the ceiling itself is near 0. None without lines.
    """
    defined = [line for line in lines if line.get("cosine") is not None]
    if not defined:
        return None
    layers = sorted({line["layer"] for line in defined}, key=lambda layer: (isinstance(layer, str), layer))
    return {
        **_conflict_means(defined),
        "steps": len({line["step"] for line in defined}),
        "by_layer": [
            {"layer": layer, **_conflict_means([line for line in defined if line["layer"] == layer])}
            for layer in layers
        ],
    }


def _compare(
    systems: Mapping[str, SeedScores],
    names: Sequence[str],
    criterion: Criterion,
    seeds: Sequence[int],
    draws: int,
    resampling_seed: int,
) -> dict[str, Any]:
    """One row of the verdict: the macro average over `names`, which may be a single data set."""
    samples = {role: Sample.of(scores, names) for role, scores in systems.items()}
    specialist, joint = samples["specialist"], samples["joint"]
    ratio = joint.tir(specialist)
    gain, difference = specialist - samples["untrained"], specialist - joint
    interval, gained = ratio.interval(), gain.interval()
    found: dict[str, Any] = {role: cell(sample, seeds) for role, sample in samples.items()}
    found["tir"] = {
        **cell(ratio, seeds),
        "region": criterion.region(interval.low, interval.high),
        "resampled": interval.over,
    }
    found["difference"] = {"mean": difference.mean, "ci95": bounds(difference.interval())}
    found["gain"] = {"mean": gain.mean, "ci95": bounds(gained)}
    found["p_value"] = ratio.p_value()
    found["p_models"] = ratio.p_models(draws, resampling_seed)
    # Interference is a share of what was learned on top of the base: with nothing learned there is nothing to lose.
    found["status"] = "ok" if gained.low > 0.0 else "underpowered"
    found["queries"] = sum(scores.shape[1] for scores in specialist.terms.values())
    return found


def _preliminary_reasons(tasks: Mapping[str, Mapping[str, Any]], seeds: int) -> list[str]:
    reasons = [
        f"{task}: the specialist does not beat the untrained model beyond doubt (gain "
        + "{:+.3f}, 95% interval {:+.3f} to {:+.3f})".format(found["gain"]["mean"], *found["gain"]["ci95"])
        for task, found in tasks.items()
        if found["status"] == "underpowered"
    ]
    if seeds < SEEDS_NEEDED:
        missing = "the intervals hold no seed noise" if seeds == 1 else "seed noise is barely known"
        reasons.append(f"{seeds} {'seed' if seeds == 1 else 'seeds'} of at least {SEEDS_NEEDED}: {missing}")
    return reasons


def _interval_verdict(regions: Sequence[str]) -> str:
    """The verdict that whole intervals support; INCONCLUSIVE where a line runs through one that matters."""
    if "above_pass" in regions:
        return "PASS"
    if all(region == "below_fail" for region in regions):
        return "FAIL"
    if all(region in ("below_fail", "between") for region in regions):
        return "MARGINAL"
    return "INCONCLUSIVE"


def _conflict_means(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [float(line[name]) for line in lines if line.get(name) is not None]
        return math.fsum(values) / len(values) if values else None

    pairs = [(line.get("reliability_embedding"), line.get("reliability_reranking")) for line in lines]
    ceilings = [
        # A split-half cosine below 0 is noise around an unreliable gradient: its ceiling is 0.
        math.sqrt(max(float(first), 0.0) * max(float(second), 0.0))
        for first, second in pairs
        if first is not None and second is not None
    ]
    return {
        "mean_cosine": mean("cosine"),
        "mean_cosine_corrected": mean("cosine_corrected"),
        "negative_share": sum(line["cosine"] < 0.0 for line in lines) / len(lines),
        "reliability_embedding": mean("reliability_embedding"),
        "reliability_reranking": mean("reliability_reranking"),
        "noise_ceiling": math.fsum(ceilings) / len(ceilings) if ceilings else None,
        "magnitude_similarity": mean("magnitude_similarity"),
        "measurements": len(lines),
    }
