"""Do two tasks pull a layer in different directions? Arithmetic on the inner products of their gradients.

A cosine is only as good as the two gradients it compares, so each task's gradient is also compared with itself on two
halves of its own batch; that reliability is the ceiling for any agreement. Beside it stands a null: the cosine of both
tasks' gradients on the same texts with their labels shuffled, which is what the model and the texts alone agree on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerConflict:
    """Agreement of two gradients in one layer.

    `magnitude_similarity` is 2 |e| |r| / (|e|^2 + |r|^2) (Yu et al., NeurIPS 2020, arXiv 2001.06782).
    `half_cosine_*` is the cosine of a task's gradients on the two halves of its batch, `reliability_*` the same for
    the whole batch, which may be below 0. `cosine_corrected` divides the cosine by what the two reliabilities allow
    (Spearman's correction for attenuation); it is null when a reliability is not positive. One probe's correction is
    noisy: over several, see `ceiling`.
    """

    cosine: float
    cosine_corrected: float | None
    null_cosine: float
    half_cosine_embedding: float
    half_cosine_reranking: float
    reliability_embedding: float
    reliability_reranking: float
    norm_embedding: float
    norm_reranking: float
    magnitude_ratio: float
    magnitude_similarity: float


def compare(gram: Tensor, null: Tensor) -> LayerConflict:
    """From inner products: `gram [4, 4]` of the halves (embedding, embedding, reranking, reranking), `null [2, 2]` of
    both tasks with shuffled labels."""
    whole = gram.double().view(2, 2, 2, 2).mean((1, 3))
    norm_e, norm_r = (math.sqrt(max(0.0, float(square))) for square in whole.diagonal())
    cosine = _cosine(whole)
    halves = [_cosine(gram[start : start + 2, start : start + 2]) for start in (0, 2)]
    reliable = [whole_batch(half) for half in halves]
    limit = math.sqrt(reliable[0] * reliable[1]) if min(reliable) > 0 else 0.0
    return LayerConflict(
        cosine=cosine,
        cosine_corrected=max(-1.0, min(1.0, cosine / limit)) if limit > 0 else None,
        null_cosine=_cosine(null),
        half_cosine_embedding=halves[0],
        half_cosine_reranking=halves[1],
        reliability_embedding=reliable[0],
        reliability_reranking=reliable[1],
        norm_embedding=norm_e,
        norm_reranking=norm_r,
        magnitude_ratio=norm_e / norm_r if norm_r > 0 else 0.0,
        magnitude_similarity=2 * norm_e * norm_r / (norm_e**2 + norm_r**2) if norm_e + norm_r > 0 else 0.0,
    )


def whole_batch(half: float) -> float:
    """Split-half cosine stepped up to the whole batch (Spearman-Brown: 2c / (1 + c)), at least -1.

    Halves that contradict each other have no meaningful reliability; the formula runs to minus infinity there.
    """
    return max(-1.0, 2 * half / (1 + half)) if half > -1 else -1.0


def ceiling(embedding: Sequence[float], reranking: Sequence[float]) -> float | None:
    """The cosine that two tasks could reach at most, from the half cosines of several probes (or layers) of each.

    Half cosines are averaged first, then stepped up, and the root comes last: noise around a reliability of 0 averages
    out, while cut at 0 one by one the same values would stand above 0. None where a task's mean is not positive.
    """
    means = [sum(values) / len(values) if values else 0.0 for values in (embedding, reranking)]
    return math.sqrt(whole_batch(means[0]) * whole_batch(means[1])) if min(means) > 0 else None


def _cosine(gram: Tensor) -> float:
    (first, cross), (_, second) = gram.tolist()
    return cross / math.sqrt(first * second) if first > 0 and second > 0 else 0.0
