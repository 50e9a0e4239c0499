"""Corrections for many tests over families that are declared before the results are known.

A family is the list of its tests' labels. It keeps its size when only some of its tests were done, and tests outside of
it never enter: arms added later form a family of their own and leave the earlier one's p-values as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def holm(family: Sequence[str], p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values by label; they control the family-wise error under any dependence.

    Tests of the family that were not done, or have no p-value (NaN), count as not rejected: the others are adjusted as
    if these had p = 1. Raises ValueError for a label that the family does not declare, and for repeated labels.

    Source: Holm (1979). adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    _check(family, p_values)
    adjusted, running = dict(p_values), 0.0
    done = [label for label in p_values if not math.isnan(p_values[label])]
    for rank, label in enumerate(sorted(done, key=lambda label: p_values[label])):
        running = max(running, min(1.0, (len(family) - rank) * p_values[label]))
        adjusted[label] = running
    return adjusted


def bonferroni(family: Sequence[str], p_values: Mapping[str, float]) -> dict[str, float]:
    """Bonferroni-adjusted p-values by label, min(1, m p): simpler than Holm's and never smaller. Raises as `holm`."""
    _check(family, p_values)
    # In this order, for min(1.0, NaN) is 1.
    return {label: min(len(family) * p, 1.0) for label, p in p_values.items()}


def widened(comparisons: int, confidence: float = 0.95) -> float:
    """Confidence for each interval of the best of several against the others, which was chosen for coming out best.

    1 - (1 - confidence) / comparisons: all of the intervals hold together with at least the wanted confidence.
    """
    return 1.0 - (1.0 - confidence) / max(1, comparisons)


def _check(family: Sequence[str], p_values: Mapping[str, float]) -> None:
    if len(set(family)) < len(family):
        raise ValueError(f"a family must not name a test twice: {sorted(family)}")
    if unknown := sorted(p_values.keys() - set(family)):
        raise ValueError(f"tests outside of the declared family of {len(family)}: {unknown}")
