"""Numbers as they stand in result files, from samples: the one place where statistics become records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unimoer.evaluation import statistics
from unimoer.evaluation.statistics import Sample, SeedScores
from unimoer.schema import Cell


@dataclass(frozen=True)
class Samples:
    """Of several systems on the same queries: their differences are paired."""

    macro: dict[str, Sample]
    """System -> average over collections."""
    by_dataset: dict[str, dict[str, Sample]]


def samples(systems: Mapping[str, SeedScores], replicates: int) -> Samples:
    """System -> collection -> scores `[seeds, queries]`; all systems have the same collections, seeds and queries."""
    drawn = statistics.draw(systems, replicates)
    names = sorted(next(iter(systems.values())))
    return Samples(
        {system: drawn.sample(system, names) for system in systems},
        {name: {system: drawn.sample(system, [name]) for system in systems} for name in names},
    )


def cell(sample: Sample, seeds: Sequence[int]) -> Cell:
    interval = sample.interval()
    return Cell(
        mean=number(sample.mean),
        std=number(sample.std) if len(sample.by_seed) > 1 else None,
        ci95=(number(interval.low), number(interval.high)),
        per_seed={str(seed): number(float(value)) for seed, value in zip(seeds, sample.by_seed, strict=True)},
    )


class Corrected(NamedTuple):
    holm: float | None
    bonferroni: float | None


def family(p_values: Mapping[str, float | None], declared: Sequence[str]) -> dict[str, Corrected]:
    """p-values corrected over the declared family; a test outside it has none, and one not yet made still counts."""
    size = len(declared)
    inside = [name for name, p in p_values.items() if name in declared and p is not None]
    known = [p for name in inside if (p := p_values[name]) is not None]
    adjusted = dict(
        zip(inside, zip(statistics.holm(known, size), statistics.bonferroni(known, size), strict=True), strict=True)
    )
    return {name: Corrected(*adjusted[name]) if name in adjusted else Corrected(None, None) for name in p_values}


def number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
