"""Pilots of the similarity router: which of the trained experts is best for texts like these?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from unimoer.config import TrainingConfig
from unimoer.data.collate import Collator
from unimoer.data.sampling import SamplerConfig, TaskSampler
from unimoer.errors import UserError
from unimoer.model.unified import UnifiedModel
from unimoer.types import EmbeddingBatch, Example, PairBatch, Task

Examples = Mapping[str, tuple[Example, ...]]


def hold_out(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """The examples to train on, and the last `count` of every domain, which are kept for the pilots.

    Raises:
        UserError: a domain has too few to give any away.
    """
    for domain, found in examples.items():
        if len(found) < 2 * count:
            raise UserError(
                f"data.domains.{domain}: {len(found)} training queries are too few to keep {count} of them for pilots; "
                "lower router.pilot_queries"
            )
    kept = {domain: found[:-count] for domain, found in examples.items()}
    return kept, {domain: found[-count:] for domain, found in examples.items()}


@torch.no_grad()
def fit_pilots(model: UnifiedModel, held_out: Examples, collator: Collator, config: TrainingConfig, seed: int) -> None:
    """Ask every expert about the held-out queries, group their texts by the expert that answered best, take means.

    After RouterRetriever (arXiv 2409.02685), where the measure is nDCG on a corpus; here it is the loss of the query
    in its batch, which needs no second index. One pilot for each domain, kind of text (query, document, pair) and
    expert that won any.
    """
    assert model.pilots is not None
    experts = list(model.config.adapter.experts or {})
    groups: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)
    model.eval()
    for domain, examples in held_out.items():
        dataset = collator.datasets[domain]
        documents, families = {domain: sorted(dataset.corpus)}, {domain: dataset.families}
        for task in Task:
            negatives = config.embedding.negatives if task is Task.EMBEDDING else config.reranking.negatives
            settings = SamplerConfig(len(examples), negatives, 0)
            sampler = TaskSampler(task, {domain: examples}, documents, {domain: 1.0}, settings, seed, families)
            _, samples = sampler.next()
            collate = collator.embedding if task is Task.EMBEDDING else collator.reranking
            batch = collate(domain, samples)
            # A head that reads lists has no single text to choose an expert for; the configuration refuses both.
            assert isinstance(batch, EmbeddingBatch | PairBatch)
            best = torch.stack([_losses(model, batch, expert, config) for expert in experts]).argmin(0)
            for kind, states in _texts(model, batch).items():
                for row, winner in enumerate(best.tolist()):
                    groups[domain, kind, winner].append(states[row])
    centroids = torch.stack([F.normalize(torch.stack(found).mean(0), dim=-1) for found in groups.values()])
    model.pilots.fit(centroids, torch.tensor([winner for _, _, winner in groups]))


def _losses(model: UnifiedModel, batch: EmbeddingBatch | PairBatch, expert: str, config: TrainingConfig) -> Tensor:
    """Loss of every query of the batch, with all its texts given to one expert, `[Q]`."""
    device = str(model.device)
    if isinstance(batch, EmbeddingBatch):
        queries = model.embed(batch.queries.to(device), expert=expert)
        cosine = queries @ model.embed(batch.documents.to(device), expert=expert).t()
        rows = torch.arange(len(queries), device=cosine.device)
        masked = batch.relevant.to(cosine.device).clone()
        masked[rows, rows] = False
        logits = (cosine / config.embedding.loss.temperature).masked_fill(masked, -torch.inf)
        return F.cross_entropy(logits, rows, reduction="none")
    scores = model.score(batch.pairs.to(device), expert=expert).view(batch.labels.shape)
    return F.cross_entropy(scores, batch.labels.to(scores.device).argmax(1), reduction="none")


def _texts(model: UnifiedModel, batch: EmbeddingBatch | PairBatch) -> dict[str, Tensor]:
    """Base states of each query's texts by kind, one a query."""
    device = str(model.device)
    if isinstance(batch, EmbeddingBatch):
        documents = model.base_states(batch.documents.to(device))
        # Hard negatives come after the positives.
        return {"query": model.base_states(batch.queries.to(device)), "document": documents[: len(batch.relevant)]}
    pairs = model.base_states(batch.pairs.to(device))
    return {"pair": pairs.view(*batch.labels.shape, -1)[:, 0]}
