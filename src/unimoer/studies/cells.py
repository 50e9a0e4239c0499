"""Numbers as they stand in result files, from samples: the one place where statistics become records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Sample, SeedScores
from unimoer.schema import Cell


@dataclass(frozen=True)
class Samples:
    """Of several systems on the same queries: their differences are paired."""

    macro: dict[str, Sample]
    """System -> average over collections."""
    by_dataset: dict[str, dict[str, Sample]]


def samples(systems: Mapping[str, SeedScores]) -> Samples:
    """System -> collection -> scores `[seeds, queries]`; all systems have the same collections, seeds and queries."""
    names = sorted(next(iter(systems.values())))
    return Samples(
        {system: Sample.of(scores) for system, scores in systems.items()},
        {name: {system: Sample.of(scores, [name]) for system, scores in systems.items()} for name in names},
    )


def cell(sample: Sample, seeds: Sequence[int]) -> Cell:
    interval = sample.interval()
    defined = len(sample.by_seed) > 1 and np.isfinite(sample.by_seed).all()
    return Cell(
        mean=number(sample.mean),
        std=float(np.std(sample.by_seed, ddof=1)) if defined else None,
        ci95=(number(interval.low), number(interval.high)),
        per_seed={str(seed): number(float(value)) for seed, value in zip(seeds, sample.by_seed, strict=True)},
    )


class Corrected(NamedTuple):
    holm: float | None
    bonferroni: float | None


def family(p_values: Mapping[str, float | None], declared: Sequence[str]) -> dict[str, Corrected]:
    """p-values corrected over the declared family; a test outside it has none, and one not yet made still counts."""
    known = {name: p for name, p in p_values.items() if name in declared and p is not None}
    holm, bonferroni = statistics.holm(declared, known), statistics.bonferroni(declared, known)
    return {name: Corrected(holm.get(name), bonferroni.get(name)) for name in p_values}


def number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
