"""What one batch of a task costs: the only place where model, batch and loss meet."""

from __future__ import annotations

from torch import Tensor

from unimoer.config import BCEConfig, TrainingConfig
from unimoer.losses.contrastive import infonce
from unimoer.losses.ranking import bce, group_softmax
from unimoer.model.unified import UnifiedModel
from unimoer.types import EmbeddingBatch, RerankingBatch

Batch = EmbeddingBatch | RerankingBatch


def compute_loss(model: UnifiedModel, batch: Batch, config: TrainingConfig) -> tuple[Tensor, dict[str, float]]:
    """Forward pass and loss of one batch, with the loss's own terms for the log."""
    device = str(model.device)
    if isinstance(batch, EmbeddingBatch):
        loss = config.embedding.loss
        return infonce(
            model.embed(batch.queries.to(device)),
            model.embed(batch.documents.to(device)),
            batch.relevant.to(device),
            temperature=loss.temperature,
            false_negative_margin=loss.false_negative_margin,
        )
    scores = model.score(batch.pairs.to(device)).view(batch.labels.shape)
    labels = batch.labels.to(device)
    ranking = config.reranking.loss
    if isinstance(ranking, BCEConfig):
        return bce(scores, labels, positive_weight=ranking.positive_weight)
    return group_softmax(scores, labels, temperature=ranking.temperature)


def token_counts(batch: Batch) -> tuple[int, int]:
    """Real tokens of a batch, and tokens computed with the padding."""
    parts = [batch.queries, batch.documents] if isinstance(batch, EmbeddingBatch) else [batch.pairs]
    return sum(part.num_tokens for part in parts), sum(part.input_ids.numel() for part in parts)
