"""One ranking out of several: from their ranks alone, or from their scores with weights.

Cormack, Clarke and Büttcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods,
SIGIR 2009; Bruch, Gai and Ingber, An Analysis of Fusion Functions for Hybrid Retrieval, TOIS 2023 (arXiv 2210.11934),
where weighted scores do better than ranks, and a few queries are enough to choose the weight.
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


def combine(runs: Sequence[tuple[Run, float]]) -> Run:
    """Score of a document: the weighted sum of its standardised scores, mean 0 and deviation 1 over each list.

    A document that a list lacks has the lowest score of that list; a list without a query, or of equal scores, adds
    nothing to it.
    """
    combined: dict[str, dict[str, float]] = {}
    for query in dict.fromkeys(query for run, _ in runs for query in run):
        lists = [(_standardised(run.get(query, {})), weight) for run, weight in runs]
        combined[query] = {
            document: sum(weight * scores.get(document, min(scores.values(), default=0.0)) for scores, weight in lists)
            for document in dict.fromkeys(document for scores, _ in lists for document in scores)
        }
    return combined


def _standardised(scores: Mapping[str, float]) -> dict[str, float]:
    values = np.fromiter(scores.values(), dtype=np.float64, count=len(scores))
    deviation = values.std() if len(values) else 0.0
    centred = (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
    return dict(zip(scores, centred.tolist(), strict=True))


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda document: (np.float32(scores[document]), document.encode()), reverse=True)
