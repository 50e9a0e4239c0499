"""Gradients of the two tasks: how far they agree, against what noise alone would show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unimoer.schema import ConflictLine
from unimoer.schema.decision import ConflictMeans, Conflicts, LayerConflict


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

    embedding, reranking = mean("reliability_embedding"), mean("reliability_reranking")
    # Averaged first: a split-half cosine below 0 is noise, and cutting each off at 0 would lift the ceiling above both.
    ceiling = None
    if embedding is not None and reranking is not None and min(embedding, reranking) >= 0.0:
        ceiling = math.sqrt(embedding * reranking)
    return ConflictMeans(
        mean_cosine=mean("cosine"),
        mean_cosine_corrected=mean("cosine_corrected"),
        null_cosine=mean("null_cosine"),
        negative_share=sum((line.cosine or 0.0) < 0.0 for line in lines) / len(lines),
        reliability_embedding=embedding,
        reliability_reranking=reranking,
        noise_ceiling=ceiling,
        magnitude_similarity=mean("magnitude_similarity"),
        measurements=len(lines),
    )
