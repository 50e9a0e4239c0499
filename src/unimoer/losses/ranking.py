"""Losses of the reranking task. Scores are float32, `[G, K]`: groups of one query's documents."""

from __future__ import annotations

import math

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


def ranknet(scores: Tensor, labels: Tensor, *, scale: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Mean over pairs of log(1 + exp(-(s_better - s_worse))) (Burges et al., ICML 2005).

    As E2Rank's code has it; its paper's equation sums the pairs and, as printed, has the sign the other way round.
    """
    margins = scale * (scores.unsqueeze(2) - scores.unsqueeze(1))
    better = labels.unsqueeze(2) > labels.unsqueeze(1)
    # Without any pair there is nothing to learn, and no number to divide by.
    loss = F.softplus(-margins[better]).sum() / better.sum().clamp(min=1)
    return loss, {"ranknet": loss.item(), **_group_metrics(scores.detach(), labels)}


def listwise(
    vectors: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.25,
    disperse_weight: float = 0.45,
    dual_weight: float = 0.85,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of jina-reranker-v3 (arXiv 2509.25085, eq. 1-3) within one prompt.

    `vectors [G, K + 2, p]`, unit length: the query before it has read a document, K documents, the query after.
    Rank: cross-entropy of the positive under the last query; dual: under the first; disperse: the log of the mean of
    exp(cosine / temperature) over pairs of documents, of which there must be one. Left out: negatives of other prompts,
    and the term of augmented duplicates, whose formula is not published.
    """
    first, documents, last = vectors[:, 0], vectors[:, 1:-1], vectors[:, -1]
    scores = torch.einsum("gkp,gp->gk", documents, last)
    rank, log = group_softmax(scores, labels, temperature=temperature)
    early, _ = group_softmax(torch.einsum("gkp,gp->gk", documents, first), labels, temperature=temperature)
    left, right = torch.triu_indices(documents.shape[1], documents.shape[1], offset=1, device=vectors.device)
    cosines = (documents[:, left] * documents[:, right]).sum(-1)
    disperse = (torch.logsumexp(cosines / temperature, 1) - math.log(len(left))).mean()
    loss = rank + disperse_weight * disperse + dual_weight * early
    return loss, {**log, "dual": early.item(), "disperse": disperse.item()}
