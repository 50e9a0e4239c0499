"""Losses of the embedding task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(
    queries: Tensor,
    documents: Tensor,
    relevant: Tensor,
    *,
    temperature: float,
    false_negative_margin: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """InfoNCE with in-batch and mined negatives; document i is the positive of query i.

    The mean over queries of the cross-entropy of `infonce_logits`, which has the arguments.
    """
    logits, masked = infonce_logits(
        queries, documents, relevant, temperature=temperature, false_negative_margin=false_negative_margin
    )
    rows = torch.arange(len(queries), device=queries.device)
    loss = F.cross_entropy(logits, rows)
    with torch.no_grad():
        metrics = {
            "infonce": loss.item(),
            "in_batch_accuracy": (logits.argmax(1) == rows).float().mean().item(),
            "positive_cosine": (queries * documents[: len(queries)]).sum(1).mean().item(),
            "masked_negatives": masked.float().sum(1).mean().item(),
        }
    return loss, metrics


def infonce_logits(
    queries: Tensor,
    documents: Tensor,
    relevant: Tensor,
    *,
    temperature: float,
    false_negative_margin: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`[Q, D]`: cosines over the temperature, minus infinity where `[Q, D]`, the second result, masks a document.

    Every document but the query's own is a negative unless it is known to be relevant (`relevant`), or its cosine
    exceeds the positive's by more than `false_negative_margin` (the threshold mask of Qwen3-Embedding, arXiv
    2506.05176; the comparison uses cosines, before the temperature).

    Args:
        queries: `[Q, d]`, unit length, float32.
        documents: `[D, d]`, unit length, D >= Q.
        relevant: `[Q, D]`, true where a document is judged relevant.
    """
    cosine = queries @ documents.t()
    rows = torch.arange(len(queries), device=queries.device)
    masked = relevant.clone()
    if false_negative_margin is not None:
        masked |= cosine.detach() > cosine.detach()[rows, rows].unsqueeze(1) + false_negative_margin
    masked[rows, rows] = False
    return (cosine / temperature).masked_fill(masked, -torch.inf), masked


def matryoshka_infonce(
    queries: Tensor,
    documents: Tensor,
    relevant: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    temperature: float,
    false_negative_margin: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """`sum_m w_m InfoNCE(first m numbers of every vector)`, so that a truncated embedding is one that was trained.

    Kusupati et al., NeurIPS 2022, arXiv 2205.13147, equation 1. The truncated vectors are brought to unit length
    again, as they are in use; each dimension masks false negatives by its own cosines. It is a sum: more dimensions
    make a larger loss next to that of another task. The metrics are those of the full dimension, and the loss of
    every dimension as `infonce_<m>`.

    Args:
        queries: `[Q, d]`, unit length, float32.
        documents: `[D, d]`, unit length, D >= Q.
        relevant: `[Q, D]`, true where a document is judged relevant.
        dims: different numbers from 1 to d, d among them.
        weights: of each dimension; 1 when empty.

    Raises:
        ValueError: the dimensions do not fit the vectors, or the weights not the dimensions.
    """
    full = queries.shape[1]
    if full not in dims or len(set(dims)) != len(dims) or not all(1 <= dim <= full for dim in dims):
        raise ValueError(f"matryoshka dimensions {list(dims)}: must differ, lie in 1..{full} and include {full}")
    losses: list[Tensor] = []
    metrics: dict[str, float] = {}
    for dim, weight in zip(dims, weights or [1.0] * len(dims), strict=True):
        whole = dim == full
        loss, terms = infonce(
            queries if whole else F.normalize(queries[:, :dim], dim=-1),
            documents if whole else F.normalize(documents[:, :dim], dim=-1),
            relevant,
            temperature=temperature,
            false_negative_margin=false_negative_margin,
        )
        losses.append(weight * loss)
        metrics |= (terms if whole else {}) | {f"infonce_{dim}": terms["infonce"]}
    return torch.stack(losses).sum(), metrics
