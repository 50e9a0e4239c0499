"""Losses of the reranking task. Scores are float32 logits, `[G, K]`: groups of one query's pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _group_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    # A spread of zero means that every pair of a group gets the same score: nothing is being ranked.
    return {
        "group_accuracy": (scores.argmax(1) == labels.argmax(1)).float().mean().item(),
        "score_spread": scores.std(1, correction=0).mean().item(),
    }


def bce(scores: Tensor, labels: Tensor, *, positive_weight: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Pointwise binary cross-entropy; with the yes/no head it is the two-way softmax of Qwen3-Reranker."""
    weight = torch.as_tensor(positive_weight, device=scores.device)
    loss = F.binary_cross_entropy_with_logits(scores, labels, pos_weight=weight)
    return loss, {"bce": loss.item(), **_group_metrics(scores.detach(), labels)}


def group_softmax(scores: Tensor, labels: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the one positive among its group (RankLLaMA's loss, arXiv 2310.08319)."""
    loss = F.cross_entropy(scores / temperature, labels.argmax(1))
    return loss, {"group_softmax": loss.item(), **_group_metrics(scores.detach(), labels)}
