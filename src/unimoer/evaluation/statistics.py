"""Intervals and tests over queries and seeds: hierarchical bootstrap, sign-flip randomisation, Holm, Bonferroni.

Every function takes per-query scores as `{dataset: array [seeds, queries]}`. Two systems that are compared share their
columns (the same queries in the same order) and their rows (the same seeds), and each replicate resamples both alike.
Data sets are kept fixed: they were chosen, not drawn, so nothing here speaks of data sets that were not measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SeedScores = Mapping[str, Array]
"""Data set -> scores `[seeds, queries]`."""

REPLICATES = 10_000
SEED = 20240229
"""Of the resampling, not of the training: fixed, so that the same files always give the same interval."""

_CHUNK_BYTES = 16 * 2**20
_EXACT_UP_TO = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval. `low` and `high` are NaN where the statistic is undefined in some replicate."""

    estimate: float
    low: float
    high: float
    resampled: str
    """`seeds and queries`, or `queries` where one seed leaves nothing to resample: then seed noise is not in it."""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0.0 or self.high < 0.0


def bootstrap_means(
    systems: Mapping[str, SeedScores], replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, dict[str, Array]]:
    """Resampled mean score of each system on each data set: system -> data set -> `[replicates]`.

    A replicate draws seeds with replacement (outer), one draw for all systems and data sets, because a seed is a
    training run that answers all of them; then queries of each data set with replacement (inner), one draw for all
    systems and seeds. The seeds answer the *same* queries: a separate draw of queries for each seed, as for nested
    data, would average query noise away and give intervals that are too short by up to sqrt(seeds).

    With few seeds the outer level sees little: three seeds understate seed variance by a third on average.
    The draws of a data set depend only on its name and size, not on which others are measured beside it.

    Raises ValueError for systems that do not share data sets, seeds or queries. Source: Owen (2007), the pigeonhole
    bootstrap, with seeds and queries as the two crossed factors.
    """
    shapes = _common_shapes(systems)
    seeds = next(iter(shapes.values()))[0]
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=replicates) / seeds  # [B, S]

    means: dict[str, dict[str, Array]] = {system: {} for system in systems}
    for dataset in sorted(shapes):
        # One draw of queries serves every row of [systems * S, Q].
        rows = np.concatenate([np.asarray(scores[dataset], np.float64) for scores in systems.values()])
        resampled = _query_means(rows, replicates, np.random.default_rng([seed, zlib.crc32(dataset.encode())]))
        for position, system in enumerate(systems):
            by_seed = resampled[:, position * seeds : (position + 1) * seeds]
            means[system][dataset] = (by_seed * drawn).sum(axis=1)
    return means


def hierarchical_bootstrap(
    specialist: SeedScores, joint: SeedScores, replicates: int = REPLICATES, seed: int = SEED, confidence: float = 0.95
) -> Interval:
    """Interval of the task interference ratio, in percent: 100 (mean specialist - mean joint) / mean specialist.

    Means are over queries and seeds within a data set, then over data sets, and the ratio is formed inside each
    replicate. Positive: the joint model is worse. NaN where a specialist scores 0.
    """
    means = bootstrap_means({"specialist": specialist, "joint": joint}, replicates, seed)
    return percentile_interval(
        float(tir(macro_mean(specialist), macro_mean(joint))),
        tir(macro(means["specialist"]), macro(means["joint"])),
        _seeds(specialist),
        confidence,
    )


def paired_difference_interval(
    system: SeedScores, baseline: SeedScores, replicates: int = REPLICATES, seed: int = SEED, confidence: float = 0.95
) -> Interval:
    """Interval of mean system - mean baseline, in the scores' own units, macro-averaged inside each replicate."""
    means = bootstrap_means({"system": system, "baseline": baseline}, replicates, seed)
    return percentile_interval(
        macro_mean(system) - macro_mean(baseline),
        macro(means["system"]) - macro(means["baseline"]),
        _seeds(system),
        confidence,
    )


def sign_flip_test(first: SeedScores, second: SeedScores, draws: int = REPLICATES, seed: int = SEED) -> float:
    """Two-sided p-value of "first and second are exchangeable on every query".

    Differences are averaged over seeds for each query, so the claim is about these trained models; their signs are
    flipped query by query and macro-averaged over data sets inside each draw. p = (1 + #{|T*| >= |T|}) / (draws + 1);
    with at most 16 queries that differ, all sign patterns are enumerated and p is exact.

    Source: Fisher's randomisation test as recommended by Smucker, Allan and Carterette (CIKM 2007).
    """
    shapes = _common_shapes({"first": first, "second": second})
    terms = np.concatenate(
        [
            (np.asarray(first[name], np.float64) - np.asarray(second[name], np.float64)).mean(axis=0)
            / (queries * len(shapes))
            for name, (_, queries) in sorted(shapes.items())
        ]
    )
    # A query on which both agree adds 0 under either sign: dropping it changes nothing and makes more cases exact.
    terms = terms[terms != 0.0]
    observed = abs(terms.sum())
    # Rounding must not turn a tie with the observed value into a smaller one.
    threshold = observed - 1e-12 * np.abs(terms).sum()
    if terms.size <= _EXACT_UP_TO:
        patterns = (np.arange(2**terms.size)[:, None] >> np.arange(terms.size)) & 1  # [2^n, n]
        return float(np.mean(np.abs(_flipped(patterns, terms)) >= threshold))

    generator = np.random.default_rng(seed)
    extreme, done = 0, 0
    while done < draws:
        size = min(draws - done, max(1, _CHUNK_BYTES // (8 * terms.size)))
        # Whole bytes per draw, so that the random stream does not depend on the chunk size.
        random = np.frombuffer(generator.bytes(size * -(-terms.size // 8)), np.uint8).reshape(size, -1)
        bits = np.unpackbits(random, axis=1, count=terms.size)
        extreme += int(np.count_nonzero(np.abs(_flipped(bits, terms)) >= threshold))
        done += size
    return (1 + extreme) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; they control the family-wise error under any dependence.

    Source: Holm (1979). adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda position: p_values[position])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Bonferroni-adjusted p-values, min(1, m p): simpler than Holm's and never smaller."""
    return [min(1.0, len(p_values) * p) for p in p_values]


def tir(specialist: Array | float, joint: Array | float) -> Array:
    """Task interference ratio in percent; NaN where the specialist scores 0, for then there is nothing to lose."""
    reference = np.asarray(specialist, np.float64)
    safe = np.where(reference > 0.0, reference, 1.0)
    return np.where(reference > 0.0, 100.0 * (reference - np.asarray(joint, np.float64)) / safe, np.nan)


def macro(means: Mapping[str, Array]) -> Array:
    """Average over data sets of `{dataset: [replicates]}`, each data set with the same weight."""
    return np.mean([means[name] for name in sorted(means)], axis=0)


def macro_mean(scores: SeedScores) -> float:
    """Mean over queries and seeds of each data set, averaged over data sets."""
    return float(np.mean([scores[name].mean() for name in sorted(scores)]))


def percentile_interval(estimate: float, replicates: Array, seeds: int, confidence: float = 0.95) -> Interval:
    """The central `confidence` share of the replicates `[B]`."""
    tail = 50.0 * (1.0 - confidence)
    # np.percentile returns NaN as soon as one replicate is NaN: an interval over the others would hide the problem.
    low, high = np.percentile(replicates, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high), "seeds and queries" if seeds > 1 else "queries")


def _query_means(rows: Array, replicates: int, generator: np.random.Generator) -> Array:
    """Means `[replicates, rows]` over resampled columns of `[rows, queries]`, by counting how often each is drawn."""
    queries = rows.shape[1]
    # Ids in a narrow type: drawing them is most of the time.
    narrow = np.uint16 if queries <= 2**16 else np.uint32
    means = np.empty((replicates, rows.shape[0]))
    chunk = max(1, _CHUNK_BYTES // (8 * queries))
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        ids = generator.integers(0, queries, size=(size, queries), dtype=narrow)
        ids_in_row = ids + np.arange(size, dtype=np.int64)[:, None] * queries
        counts = np.bincount(ids_in_row.ravel(), minlength=size * queries).reshape(size, queries)
        # Not a matrix product: BLAS sums in an order that depends on the number of threads, and results must not.
        means[start : start + size] = np.einsum("bq,rq->br", counts.astype(np.float64), rows) / queries
    return means


def _flipped(bits: NDArray[np.integer], terms: Array) -> Array:
    """Sums of `terms` with the signs that `bits` `[draws, n]` give: bit 1 keeps, bit 0 flips."""
    return 2.0 * (bits.astype(np.float64) @ terms) - terms.sum()


def _seeds(scores: SeedScores) -> int:
    return next(iter(scores.values())).shape[0]


def _common_shapes(systems: Mapping[str, SeedScores]) -> dict[str, tuple[int, int]]:
    """Data set -> (seeds, queries), after checking that every system has the same."""
    shapes: dict[str, tuple[int, int]] = {}
    first = ""
    for system, scores in systems.items():
        found = {name: np.shape(values) for name, values in scores.items()}
        if not found:
            raise ValueError(f"{system}: no data sets")
        for name, shape in found.items():
            if len(shape) != 2 or 0 in shape:
                raise ValueError(f"{system}, {name}: expected scores [seeds, queries], got shape {shape}")
        if not shapes:
            first, shapes = system, {name: (shape[0], shape[1]) for name, shape in found.items()}
        if found != shapes:
            raise ValueError(f"{first} and {system} are not paired: {shapes} against {found}")
    if len({seeds for seeds, _ in shapes.values()}) > 1:
        raise ValueError(f"every data set must have the same seeds, got {shapes}")
    return shapes
