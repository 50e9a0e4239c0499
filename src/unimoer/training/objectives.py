"""What one batch of a task costs: the only place where model, batch and loss meet."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from unimoer.config import BCEConfig, GroupSoftmaxConfig, ListwiseConfig, RankNetConfig, TrainingConfig
from unimoer.data.collate import join
from unimoer.losses.contrastive import infonce, matryoshka_infonce
from unimoer.losses.ranking import bce, group_softmax, listwise, ranknet
from unimoer.model.routing import RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.training.gradcache import cached_loss, split_rows
from unimoer.training.parallel import ALONE, Group
from unimoer.training.routing import RoutingLosses
from unimoer.types import EmbeddingBatch, RerankingBatch, Task, TokenBatch

Batch = EmbeddingBatch | RerankingBatch


def compute_loss(
    model: UnifiedModel,
    batch: Batch,
    config: TrainingConfig,
    *,
    routing: RoutingLosses | None = None,
    traces: list[RoutingTrace] | None = None,
    group: Group = ALONE,
) -> tuple[Tensor, dict[str, float]]:
    """Forward pass and loss of one batch, with the loss's own terms for the log.

    With `routing`, the losses of the routers are part of it; the term `task_loss` is the loss without them. `traces`
    is told the decisions of every forward pass. Each process of a `group` computes its share of the texts and gets the
    loss of the whole batch, whose gradients are parts to be added up.
    """
    traces = [] if traces is None else traces
    if isinstance(batch, EmbeddingBatch) and config.embedding.gradcache_rows is not None:
        return _cached(model, batch, config, config.embedding.gradcache_rows, routing, traces, group)
    first = len(traces)
    if isinstance(batch, EmbeddingBatch):
        loss, terms = _contrastive(_embed_both(model, batch, traces, group), batch, config)
    else:
        loss, terms = _ranking(model, batch, config, traces, group)
    extra, log = routing(task_of(batch), traces[first:], group) if routing is not None else (None, {})
    return (loss if extra is None else loss + extra), {"task_loss": loss.item(), **terms, **log}


def task_of(batch: Batch) -> Task:
    return Task.EMBEDDING if isinstance(batch, EmbeddingBatch) else Task.RERANKING


def _embed_both(model: UnifiedModel, batch: EmbeddingBatch, traces: list[RoutingTrace], group: Group) -> Tensor:
    """`[queries | documents, d]`."""
    if model.device.type == "cuda" and group is ALONE and not model.config.adapter.is_routed:
        # There a step waits for its thousands of small calls more than for its products: one pass is half the calls.
        # Routers are balanced over queries and documents apart.
        return model.embed(join(batch.queries, batch.documents).to(str(model.device)))
    return torch.cat([_embed(model, part, traces, group) for part in (batch.queries, batch.documents)])


def _embed(model: UnifiedModel, batch: TokenBatch, traces: list[RoutingTrace] | None, group: Group) -> Tensor:
    trace = None if traces is None else RoutingTrace()
    if traces is not None and trace is not None:
        traces.append(trace)
    own = model.embed(group.share(batch).to(str(model.device)), trace)
    return group.gather(own, len(batch.input_ids))


def _contrastive(embeddings: Tensor, batch: EmbeddingBatch, config: TrainingConfig) -> tuple[Tensor, dict[str, float]]:
    """`[queries | documents, d]` -> InfoNCE, of the full size or of several."""
    settings = config.embedding.loss
    queries, documents = embeddings.split([len(batch.queries.input_ids), len(batch.documents.input_ids)])
    relevant = batch.relevant.to(embeddings.device)
    if settings.matryoshka:
        return matryoshka_infonce(
            queries,
            documents,
            relevant,
            dims=settings.matryoshka,
            temperature=settings.temperature,
            false_negative_margin=settings.false_negative_margin,
        )
    return infonce(
        queries,
        documents,
        relevant,
        temperature=settings.temperature,
        false_negative_margin=settings.false_negative_margin,
    )


def _ranking(
    model: UnifiedModel, batch: RerankingBatch, config: TrainingConfig, traces: list[RoutingTrace], group: Group
) -> tuple[Tensor, dict[str, float]]:
    labels, settings = batch.labels.to(str(model.device)), config.reranking.loss
    traces.append(trace := RoutingTrace())
    found = model.head.score_batch(model, batch, trace, group)
    match settings:
        case BCEConfig():
            return bce(found.scores, labels, positive_weight=settings.positive_weight)
        case GroupSoftmaxConfig():
            return group_softmax(found.scores, labels, temperature=settings.temperature)
        case RankNetConfig():
            return ranknet(found.scores, labels, scale=settings.scale)
        case ListwiseConfig():
            # The configuration gives this loss to heads with vectors alone.
            assert found.vectors is not None
            return listwise(
                found.vectors,
                labels,
                temperature=settings.temperature,
                disperse_weight=settings.disperse_weight,
                dual_weight=settings.dual_weight,
            )


def _cached(
    model: UnifiedModel,
    batch: EmbeddingBatch,
    config: TrainingConfig,
    rows: int,
    routing: RoutingLosses | None,
    traces: list[RoutingTrace],
    group: Group,
) -> tuple[Tensor, dict[str, float]]:
    """The same loss, chunk by chunk; router losses are those of the chunks, by their share of all rows."""
    device = str(model.device)
    logged: dict[str, float] = defaultdict(float)
    # A replay comes after other batches of the step, and must balance against what the first pass had seen.
    balance = None if routing is None else routing.snapshot()

    def embed(chunk: TokenBatch) -> tuple[Tensor, Tensor]:
        trace = RoutingTrace()
        embeddings = model.embed(chunk, trace)
        extra, log = balance(Task.EMBEDDING, [trace]) if balance is not None else (None, {})
        if not torch.is_grad_enabled():
            # The first pass; a replay is the same decisions again.
            traces.append(trace)
            for label, value in log.items():
                logged[label] += value * len(chunk.input_ids) / total
        return embeddings, embeddings.new_zeros(()) if extra is None else extra

    queries, documents = (group.share(part).to(device) for part in (batch.queries, batch.documents))
    chunks = [*split_rows(queries, rows), *split_rows(documents, rows)]
    total = sum(len(part.input_ids) for part in batch.texts)
    own = [len(queries.input_ids), len(documents.input_ids)]

    def contrast(vectors: Tensor) -> tuple[Tensor, dict[str, float]]:
        parts = zip(vectors.split(own), batch.texts, strict=True)
        gathered = [group.gather(vectors, len(part.input_ids)) for vectors, part in parts]
        value, terms = _contrastive(torch.cat(gathered), batch, config)
        return value, {"task_loss": value.item(), **terms}

    parameters = list(model.trainable(Task.EMBEDDING).values())
    loss, terms = cached_loss(chunks, embed, contrast, parameters, rows=total, total=group.total)
    return loss, {**terms, **{label: group.total(value) for label, value in sorted(logged.items())}}


def token_counts(model: UnifiedModel, batch: Batch) -> tuple[int, int]:
    """Real tokens of a batch, and tokens that the model computes, what is left of the padding among them."""
    computed = sum(model.decoder.tokens_computed(part) for part in batch.texts)
    return sum(part.num_tokens for part in batch.texts), computed
