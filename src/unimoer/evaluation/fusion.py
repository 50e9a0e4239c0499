"""Reciprocal rank fusion: one ranking out of several, from their ranks alone.

Cormack, Clarke and Büttcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods,
SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unimoer.types import Run


def fuse(runs: Sequence[Run], k: int = 60) -> Run:
    """Score of a document: the sum of `1 / (k + rank)` over the runs that hold it, ranks from 1.

    Each run is ranked as `metrics.evaluate_run` ranks it: scores as float32, equal ones by document id in descending
    byte order. The paper sets k = 60. A run without a query, or without a document, adds nothing to it.
    """
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, scores in run.items():
            sums = fused.setdefault(query, {})
            for rank, document in enumerate(_ranked(scores), start=1):
                sums[document] = sums.get(document, 0.0) + 1 / (k + rank)
    return fused


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda document: (np.float32(scores[document]), document.encode()), reverse=True)
