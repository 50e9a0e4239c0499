"""Gradients of the two tasks: how far they agree, against what noise alone would show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unimoer.schema import ConflictLine
from unimoer.schema.decision import ConflictMeans, Conflicts, LayerConflict
from unimoer.training.conflict import ceiling, whole_batch


def summarise_conflicts(lines: Sequence[ConflictLine]) -> Conflicts | None:
    """Mean cosine of the two tasks' gradients, how often it is negative, and what it can be at most and by chance.

    The gradients are those with respect to the frozen weights, so the numbers do not depend on how a LoRA update is
    split into its two factors. None without lines.
    """
    defined = [line for line in lines if line.cosine is not None]
    if not defined:
        return None
    layers = sorted({line.layer for line in defined}, key=lambda layer: (isinstance(layer, str), layer))
    return Conflicts(
        **_means(defined).model_dump(),
        steps=len({line.step for line in defined}),
        by_layer=[
            LayerConflict(layer=layer, **_means([line for line in defined if line.layer == layer]).model_dump())
            for layer in layers
        ],
    )


def _means(lines: Sequence[ConflictLine]) -> ConflictMeans:
    def mean(name: str) -> float | None:
        values = [float(value) for line in lines if (value := getattr(line, name)) is not None]
        return math.fsum(values) / len(values) if values else None

    halves = [
        [value for line in lines if (value := getattr(line, name)) is not None]
        for name in ("half_cosine_embedding", "half_cosine_reranking")
    ]
    return ConflictMeans(
        mean_cosine=mean("cosine"),
        mean_cosine_corrected=mean("cosine_corrected"),
        null_cosine=mean("null_cosine"),
        negative_share=sum((line.cosine or 0.0) < 0.0 for line in lines) / len(lines),
        reliability_embedding=_reliability(halves[0]),
        reliability_reranking=_reliability(halves[1]),
        noise_ceiling=ceiling(*halves),
        magnitude_similarity=mean("magnitude_similarity"),
        measurements=len(lines),
    )


def _reliability(halves: Sequence[float]) -> float | None:
    """Averaged first, then stepped up to the whole batch: one by one, noise around 0 would not average out."""
    return whole_batch(math.fsum(halves) / len(halves)) if halves else None
