"""One number of an experiment with all that its interval, test and plan need: sums, differences and ratios of means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize

from unimoer.evaluation.statistics.components import Components, Required, query_part
from unimoer.evaluation.statistics.pivot import Array, critical_value
from unimoer.evaluation.statistics.randomisation import DRAWS, SEED, sign_flip

SeedScores = Mapping[str, Array]
"""Data set -> scores `[seeds, queries]`."""

TIR_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` and `high` are NaN where the number is undefined, infinite where the data bound it on neither side."""

    estimate: float
    low: float
    high: float
    over: str
    """`seeds and queries`; or `queries` with one seed: then it speaks of these trained models, not of training."""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True, eq=False)
class Sample:
    """A number that is a sum over data sets of means over seeds and queries.

    Samples that are combined must be paired: the same seeds in the same order and, for a data set that both have, the
    same queries in the same order. A system without seeds (BM25, the untrained base) repeats its row for every seed.
    """

    terms: Mapping[str, Array]
    """Data set -> `[seeds, queries]`, weighted: the number is the sum over data sets of the mean of each."""
    by_seed: Array
    """The number for each seed alone, `[seeds]`, to be shown beside it."""

    @classmethod
    def of(cls, scores: SeedScores, names: Sequence[str] | None = None) -> Sample:
        """Macro average of a system's scores over the data sets `names` (all by default), each with the same weight.

        Raises ValueError for no data set, scores that are not `[seeds, queries]`, or unequal numbers of seeds.
        """
        chosen = sorted(scores if names is None else names)
        terms = {name: np.asarray(scores[name], np.float64) / len(chosen) for name in chosen}
        _check(terms)
        return cls(terms, _rows(terms))

    @classmethod
    def average(cls, samples: Sequence[Sample]) -> Sample:
        """Mean of several numbers, such as one system's on both tasks, whose data sets may differ.

        Raises ValueError for none, and for unpaired ones.
        """
        terms: Mapping[str, Array] = {}
        for sample in samples:
            terms = _combined(terms, sample.terms, 1.0 / len(samples))
        _check(terms)
        return cls(terms, np.mean([sample.by_seed for sample in samples], axis=0))

    @property
    def mean(self) -> float:
        return float(sum(self.terms[name].mean() for name in sorted(self.terms)))

    @cached_property
    def components(self) -> Components:
        return Components.of(self.terms)

    def __sub__(self, other: Sample) -> Sample:
        _check_same(self, other)
        return Sample(_combined(self.terms, other.terms, -1.0), self.by_seed - other.by_seed)

    def __neg__(self) -> Sample:
        return Sample(_combined({}, self.terms, -1.0), -self.by_seed)

    def ratio(self, denominator: Sample, scale: float = 1.0) -> Ratio:
        """scale * mean / mean of denominator: the ratio of the two means, not the mean of the seeds' ratios.

        Undefined (NaN) where the denominator's mean, or for `by_seed` that seed's, is not positive.
        """
        _check_same(self, denominator)
        reference = denominator.mean
        estimate = scale * self.mean / reference if reference > 0.0 else math.nan
        # The ratio's differential, so that it adds up with other samples like any mean (delta method).
        left = _combined(self.terms, denominator.terms, -estimate / scale)
        factor = scale / reference if reference > 0.0 else math.nan
        terms = {name: factor * values + estimate / len(left) for name, values in left.items()}
        defined = denominator.by_seed > 0.0
        by_seed = np.where(defined, scale * self.by_seed / np.where(defined, denominator.by_seed, 1.0), np.nan)
        return Ratio(terms, by_seed, self, denominator, scale)

    def tir(self, specialist: Sample) -> Ratio:
        """Task interference ratio in percent, 100 (specialist - self) / specialist; positive: this system is worse."""
        return (specialist - self).ratio(specialist, TIR_SCALE)

    def interval(self, confidence: float = 0.95) -> Interval:
        spread = self.components.spread()
        half = spread.critical(1.0 - confidence) * math.sqrt(spread.variance)
        return Interval(self.mean, self.mean - half, self.mean + half, self._over)

    def p_value(self) -> float:
        """Two-sided, of "the expectation over queries and training runs is 0"; below alpha where the interval of
        confidence 1 - alpha excludes 0. With one seed it speaks of these trained models only.
        """
        return self.components.spread().p_value(self.mean)

    def p_models(self, draws: int = DRAWS, seed: int = SEED) -> float:
        """Sign-flip p-value over queries with seeds averaged: of these trained models only.

        It is no evidence about training: where seeds differ, two arms that are equal in expectation are still two
        different sets of models, and this test is right to tell them apart.
        """
        terms = [self.terms[name].mean(axis=0) / self.terms[name].shape[1] for name in sorted(self.terms)]
        return sign_flip(terms, draws, seed)

    def mde(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """Minimum detectable effect in the number's own unit: the true value that a test at `alpha` finds with
        probability `power`, given the variance components at hand.
        """
        return self.components.detectable(alpha, power)

    def required(self, line: float = 0.0, alpha: float = 0.05, power: float = 0.8) -> Required:
        """Queries of every data set, or seeds, with which the interval lies on one side of `line` with probability
        `power`, if the truth is the estimate at hand.
        """
        return self.components.required(self.mean - line, alpha, power)

    @property
    def _over(self) -> str:
        return "seeds and queries" if len(self.by_seed) > 1 else "queries"


@dataclass(frozen=True, eq=False)
class Ratio(Sample):
    """scale * numerator / denominator. As a term of differences and averages it is its linear approximation."""

    numerator: Sample
    denominator: Sample
    scale: float

    @property
    def mean(self) -> float:
        reference = self.denominator.mean
        return self.scale * self.numerator.mean / reference if reference > 0.0 else math.nan

    def interval(self, confidence: float = 0.95) -> Interval:
        """All ratios r for which "numerator - r denominator has expectation 0" is not rejected, gaps filled (Fieller).

        So it excludes 0 only where `p_value` is below 1 - confidence, and it is right for denominators close to
        0, where an interval of the ratio itself goes wrong: infinite where the denominator is not told from 0.
        """
        return fieller(self, 1.0 - confidence)

    def p_value(self) -> float:
        return self.numerator.p_value()

    def p_models(self, draws: int = DRAWS, seed: int = SEED) -> float:
        return self.numerator.p_models(draws, seed)


def fieller(ratio: Ratio, alpha: float) -> Interval:
    """Interval of a ratio of means, by inverting the test of each value."""
    estimate, over = ratio.mean, ratio._over
    delta = ratio.components.spread().variance
    if math.isnan(estimate) or math.isnan(delta):
        return Interval(estimate, math.nan, math.nan, over)
    reference = ratio.denominator.interval(1.0 - alpha)
    if not reference.excludes_zero:
        return Interval(estimate, -math.inf, math.inf, over)
    rejected = _rejected(ratio, alpha)
    step = math.sqrt(delta)
    if step <= 1e-9 * max(1.0, abs(estimate)):
        return Interval(estimate, estimate, estimate, over)
    return Interval(estimate, _end(rejected, estimate, -step), _end(rejected, estimate, step), over)


def _end(rejected: Callable[[Array], Array], estimate: float, step: float) -> float:
    """Beyond which all values are rejected, from the estimate outwards.

    Not where values are *first* rejected: with three seeds the noise of numerator - r denominator may all but vanish at
    some r beyond which values are accepted again.
    """
    values = np.array([estimate, *(estimate + step * 2.0**power for power in range(-1, 26))])
    accepted = rejected(values) <= 0.0
    last = int(np.flatnonzero(accepted).max()) if accepted.any() else 0
    if last == len(values) - 1:
        return math.copysign(math.inf, step)
    between = values[last], values[last + 1]
    return float(optimize.brentq(lambda value: rejected(np.array([value]))[0], *between, xtol=1e-10 * abs(step)))


def _rejected(ratio: Ratio, alpha: float) -> Callable[[Array], Array]:
    """A function of ratios `[N]` that is positive where "numerator - r denominator has expectation 0" is rejected.

    The variance components of numerator - r denominator are quadratic in r, so three samples give them for any r.
    """
    first, second = ratio.numerator.components, ratio.denominator.components
    both = (ratio.numerator - ratio.denominator).components
    top, bottom = ratio.numerator.mean, ratio.denominator.mean

    def rejected(values: Array) -> Array:
        r = values / ratio.scale

        def combine(one: Array | float, two: Array | float, difference: Array | float) -> Array:
            weight = r if np.ndim(one) == 0 else r[:, None]
            return np.asarray((1.0 - weight) * one + weight * (weight - 1.0) * two + weight * difference)

        total = np.maximum(0.0, combine(first.total, second.total, both.total))
        between = combine(first.between, second.between, both.between)
        residual = np.maximum(0.0, combine(first.residual, second.residual, both.residual))
        seeds = total / both.seeds
        queries, query_df = query_part(between, residual, both.seeds, both.queries)
        variance = seeds + queries
        share = np.divide(seeds, variance, out=np.zeros_like(variance), where=variance > 0.0)
        margin = critical_value(alpha, share, both.seeds - 1, query_df) * np.sqrt(variance)
        return np.abs(top - r * bottom) - margin

    return rejected


def _rows(terms: Mapping[str, Array]) -> Array:
    return np.sum([terms[name].mean(axis=1) for name in sorted(terms)], axis=0)


def _combined(first: Mapping[str, Array], second: Mapping[str, Array], factor: float) -> Mapping[str, Array]:
    """first + factor * second, data set by data set; one that only one of them has keeps its terms."""
    terms = dict(first)
    for name, values in second.items():
        if name in terms and terms[name].shape != values.shape:
            raise ValueError(f"{name}: not paired, {terms[name].shape} [seeds, queries] against {values.shape}")
        terms[name] = terms[name] + factor * values if name in terms else factor * values
    return terms


def _check_same(first: Sample, second: Sample) -> None:
    if first.terms.keys() != second.terms.keys():
        raise ValueError(f"not paired: data sets {sorted(first.terms)} against {sorted(second.terms)}")


def _check(terms: Mapping[str, Array]) -> None:
    if not terms:
        raise ValueError("no data sets")
    for name, values in terms.items():
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"{name}: expected scores [seeds, queries], got shape {values.shape}")
    if len({values.shape[0] for values in terms.values()}) > 1:
        raise ValueError(
            f"every data set must have the same seeds, got { ({name: values.shape for name, values in terms.items()}) }"
        )
