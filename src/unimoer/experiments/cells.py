"""Numbers as they stand in result files: averages by seed and in every bootstrap replicate, undefined ones None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Array, Interval, SeedScores


@dataclass(frozen=True)
class Sample:
    """One number of an experiment: its value for each seed `[S]`, and in each bootstrap replicate `[B]`.

    Samples of one experiment share their draws, so that differences of two are paired.
    """

    by_seed: Array
    replicates: Array

    @classmethod
    def of(cls, scores: SeedScores, means: Mapping[str, Array], names: Sequence[str]) -> Sample:
        """The macro average of a system over `names`, from its scores and `statistics.bootstrap_means`."""
        chosen = {name: scores[name] for name in names}
        return cls(macro_by_seed(chosen), statistics.macro({name: means[name] for name in names}))

    @property
    def mean(self) -> float:
        return float(self.by_seed.mean())

    def __sub__(self, other: Sample) -> Sample:
        return Sample(self.by_seed - other.by_seed, self.replicates - other.replicates)

    def tir(self, specialist: Sample) -> Sample:
        """The task interference ratio of this score against its specialist's, in percent."""
        return Sample(
            statistics.tir(specialist.by_seed, self.by_seed), statistics.tir(specialist.replicates, self.replicates)
        )

    def interval(self, confidence: float = 0.95) -> Interval:
        return statistics.percentile_interval(self.mean, self.replicates, len(self.by_seed), confidence)

    def cell(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "mean": number(self.mean),
            "std": std(self.by_seed),
            "ci95": bounds(self.interval()),
            "per_seed": per_seed(self.by_seed, seeds),
        }


def macro_by_seed(scores: SeedScores) -> Array:
    """Macro average over data sets for each seed, `[seeds]`."""
    return np.mean([scores[name].mean(axis=1) for name in sorted(scores)], axis=0)


def std(values: Array) -> float | None:
    """Sample standard deviation over seeds; None for a single seed, whose spread is unknown rather than zero."""
    return number(float(np.std(values, ddof=1))) if len(values) > 1 else None


def per_seed(values: Array, seeds: Sequence[int]) -> dict[str, float | None]:
    return {str(seed): number(float(value)) for seed, value in zip(seeds, values, strict=True)}


def bounds(interval: Interval) -> list[float | None]:
    return [number(interval.low), number(interval.high)]


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def correct(cells: Sequence[dict[str, Any]]) -> None:
    """Add to every cell its `p_value` corrected for all of them: `p_holm` and `p_bonferroni`."""
    p_values = [cell["p_value"] for cell in cells]
    adjusted = zip(cells, statistics.holm(p_values), statistics.bonferroni(p_values), strict=True)
    for cell, step_down, single_step in adjusted:
        cell["p_holm"], cell["p_bonferroni"] = step_down, single_step
