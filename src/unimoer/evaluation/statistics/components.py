"""Where the spread of an estimate comes from, and what more seeds or more queries would make of it.

Scores follow a two-way layout with seeds and queries crossed: score = mean + seed + seed x data set + query + residual,
where the residual is what one training run does to one query. Seeds and queries are drawn, data sets are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unimoer.evaluation.statistics.pivot import ENOUGH_DF, Array, Spread

MOST_SEEDS = 1_000
MOST_QUERIES = 1_000_000


@dataclass(frozen=True)
class Required:
    """What would show with the wanted power that the estimate lies on its side of a line, one thing changed at a time.

    None where no number does (the other source of noise is too large, or unknown with one seed), or only one beyond
    `MOST_SEEDS` or `MOST_QUERIES`.
    """

    queries: int | None
    """In every data set, with the seeds there are. With one seed: for these trained models only."""
    seeds: int | None
    """With the queries there are."""


@dataclass(frozen=True)
class Components:
    """Variance components of a weighted mean over data sets; weights are already in the values.

    All are unbiased and quadratic in the values, so differences can come out below zero; `spread` cuts the sums at 0.
    """

    total: float
    """Sample variance over seeds of one seed's mean on the queries at hand: seed effects plus residuals; 0 for one."""
    between: Array
    """Variance between queries of each data set, free of residuals, `[data sets]`; infinite where there is but one."""
    residual: Array
    """Variance of seed x query residuals of each data set, `[data sets]`; 0 for one seed, where `between` holds it."""
    seeds: int
    queries: Array
    """Number of queries of each data set, `[data sets]`."""

    @classmethod
    def of(cls, terms: Mapping[str, Array]) -> Components:
        """Of values `[seeds, queries]` by data set, whose means sum up to the estimate."""
        names = sorted(terms)
        values = np.concatenate([terms[name] for name in names], axis=1)  # [S, all queries]
        sizes = np.array([terms[name].shape[1] for name in names])
        starts = np.cumsum(sizes) - sizes
        seeds = values.shape[0]
        by_query = values.mean(axis=0)
        by_row = np.add.reduceat(values, starts, axis=1) / sizes  # [S, data sets]
        means = by_row.mean(axis=0)
        squares = np.add.reduceat((by_query - np.repeat(means, sizes)) ** 2, starts)
        between = np.where(sizes > 1, squares / np.maximum(sizes - 1, 1), np.inf)
        if seeds == 1:
            return cls(0.0, between, np.zeros(len(sizes)), 1, sizes.astype(np.float64))
        left = values - by_query - np.repeat(by_row - means, sizes, axis=1)
        # For a single query this is 0 / 1: what it does to one query cannot be told from what the seed does to all.
        error = np.add.reduceat((left**2).sum(axis=0), starts) / ((seeds - 1) * np.maximum(sizes - 1, 1))
        total = float(by_row.sum(axis=1).var(ddof=1))
        return cls(total, between - error / seeds, error, seeds, sizes.astype(np.float64))

    @property
    def seed(self) -> float:
        """Variance of one seed's mean on infinitely many queries: what training alone does. NaN with one seed."""
        return max(0.0, self.total - float((self.residual / self.queries).sum())) if self.seeds > 1 else math.nan

    def spread(self) -> Spread:
        """Of the estimate at hand. Unbiased: total / S holds the residuals once, and `between` not again."""
        return self._spread(self.total, self.seeds, self.queries)

    def planned(self, seeds: float | None = None, queries: float | None = None) -> Spread:
        """Of an estimate from so many seeds and so many queries of every data set; None: as many as there are.

        With one seed its noise is unknown, so that the plan speaks of these trained models only and `seeds` is ignored.
        """
        sizes = self.queries if queries is None else np.full_like(self.queries, queries)
        if self.seeds == 1:
            return self._spread(0.0, 1, sizes)
        total = self.seed + float((self.residual / sizes).sum())
        return self._spread(total, self.seeds if seeds is None else seeds, sizes)

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """Minimum detectable effect: the smallest true value that these seeds and queries find with this power."""
        return self.planned().detectable(alpha, power)

    def required(self, gap: float, alpha: float = 0.05, power: float = 0.8) -> Required:
        """How many queries, or seeds, tell a true value from a line that lies `gap` away."""
        gap = abs(gap)
        if not gap > 0.0 or not math.isfinite(self.planned().variance):
            return Required(None, None)
        queries = _smallest(lambda count: self.planned(queries=count).power(gap, alpha) >= power, MOST_QUERIES)
        if self.seeds == 1:
            return Required(queries, None)
        seeds = _smallest(lambda count: self.planned(seeds=count).power(gap, alpha) >= power, MOST_SEEDS)
        return Required(queries, seeds)

    def _spread(self, total: float, seeds: float, sizes: Array) -> Spread:
        queries, query_df = query_part(self.between, self.residual, seeds, sizes)
        return Spread(total / seeds, float(queries), seeds - 1, float(query_df))


def query_part(between: Array, residual: Array, seeds: float, sizes: Array) -> tuple[Array, Array]:
    """What queries add to the variance of an estimate, and its degrees of freedom; `[..., data sets] -> [...]`."""
    parts = (between + residual / seeds) / sizes
    # What the degrees of freedom come to over data sets of unequal spread (Satterthwaite).
    weights = (
        (parts**2 / np.maximum(sizes - 1.0, 0.0)).sum(-1) if (sizes > 1).all() else np.full(parts.shape[:-1], np.nan)
    )
    known = weights > 0.0
    query_df = np.where(known, parts.sum(-1) ** 2 / np.where(known, weights, 1.0), ENOUGH_DF)
    queries = (between / sizes).sum(-1)
    # Not maximum(0, queries), which would turn NaN into 0.
    return np.where(queries < 0.0, 0.0, queries), np.minimum(query_df, ENOUGH_DF)


def _smallest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest count from 2 on that is enough, where more never hurts; None where `most` is not enough."""
    if not enough(most):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
