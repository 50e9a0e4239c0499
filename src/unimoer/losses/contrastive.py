"""Losses of the embedding task."""

from __future__ import annotations

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

    Every other document is a negative unless it is known to be relevant (`relevant`), or its cosine exceeds the
    positive's by more than `false_negative_margin` (the threshold mask of Qwen3-Embedding, arXiv 2506.05176; the
    comparison uses cosines, before the temperature).

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
    logits = (cosine / temperature).masked_fill(masked, -torch.inf)
    loss = F.cross_entropy(logits, rows)
    with torch.no_grad():
        metrics = {
            "infonce": loss.item(),
            "in_batch_accuracy": (logits.argmax(1) == rows).float().mean().item(),
            "positive_cosine": cosine[rows, rows].mean().item(),
            "masked_negatives": masked.float().sum(1).mean().item(),
        }
    return loss, metrics
