"""Numbers as they stand in result files, undefined ones None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unimoer.evaluation.statistics import Array, Interval, Sample, bonferroni, holm


def cell(sample: Sample, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "mean": number(sample.mean),
        "std": std(sample.by_seed),
        "ci95": bounds(sample.interval()),
        "per_seed": per_seed(sample.by_seed, seeds),
    }


def std(values: Array) -> float | None:
    """Sample standard deviation over seeds; None for a single seed, whose spread is unknown rather than zero."""
    return number(float(np.std(values, ddof=1))) if len(values) > 1 else None


def per_seed(values: Array, seeds: Sequence[int]) -> dict[str, float | None]:
    return {str(seed): number(float(value)) for seed, value in zip(seeds, values, strict=True)}


def bounds(interval: Interval) -> list[float | None]:
    return [number(interval.low), number(interval.high)]


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def correct(cells: Mapping[str, dict[str, Any]]) -> None:
    """Add to every labelled cell its `p_value` corrected for all of them: `p_holm` and `p_bonferroni`."""
    p_values = {label: cell["p_value"] for label, cell in cells.items()}
    step_down, single_step = holm(list(cells), p_values), bonferroni(list(cells), p_values)
    for label, cell in cells.items():
        cell["p_holm"], cell["p_bonferroni"] = step_down[label], single_step[label]
