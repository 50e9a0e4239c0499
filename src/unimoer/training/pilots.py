"""Pilots of the similarity router: which of the trained experts is best for texts like these?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from unimoer.config import SimilarityConfig, TrainingConfig, TrainSpec
from unimoer.data.collate import Collator
from unimoer.data.prepare import TrainingDomain
from unimoer.data.sampling import SamplerConfig, TaskSampler
from unimoer.losses.contrastive import infonce_logits
from unimoer.model.unified import UnifiedModel
from unimoer.types import EmbeddingBatch, PairBatch, Task


@torch.no_grad()
def fit_pilots(model: UnifiedModel, domains: Mapping[str, TrainingDomain], collator: Collator, spec: TrainSpec) -> None:
    """Ask every expert about some training queries, group their texts by the expert that answered best, take means.

    After RouterRetriever (arXiv 2409.02685), which takes its pilots from the experts' training sets too; keeping
    queries back would leave this arm with fewer examples than the others. There the measure is nDCG on a corpus; here
    it is the loss of the query in its batch, which needs no second index. One pilot for each domain, kind of text
    (query, document, pair) and expert that won any. The model is left in evaluation mode.
    """
    router = model.config.adapter.router
    assert model.pilots is not None
    assert isinstance(router, SimilarityConfig)
    clear_pilots(model)
    experts = list(model.config.adapter.experts or {})
    groups: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)
    model.eval()
    for name, domain in domains.items():
        examples = {name: domain.examples[-router.pilot_queries :]}
        documents = {name: sorted(domain.dataset.corpus)}
        for task in Task:
            wanted = spec.training.embedding if task is Task.EMBEDDING else spec.training.reranking
            settings = SamplerConfig(len(examples[name]), wanted.negatives, 0)
            families = {name: domain.dataset.families}
            _, samples = TaskSampler(task, examples, documents, {name: 1.0}, settings, spec.seed, families).next()
            batch = (collator.embedding if task is Task.EMBEDDING else collator.reranking)(name, samples)
            # A head that reads lists has no single text to choose an expert for; the configuration refuses both.
            assert isinstance(batch, EmbeddingBatch | PairBatch)
            best = torch.stack([query_losses(model, batch, expert, spec.training) for expert in experts]).argmin(0)
            for kind, states in _texts(model, batch).items():
                for row, winner in enumerate(best.tolist()):
                    groups[name, kind, winner].append(states[row])
    centroids = torch.stack([F.normalize(torch.stack(found).mean(0), dim=-1) for found in groups.values()])
    model.pilots.fit(centroids, torch.tensor([winner for _, _, winner in groups]))


def clear_pilots(model: UnifiedModel) -> None:
    """Back to none, as training needs it: with pilots, every text would be read twice."""
    assert model.pilots is not None
    model.pilots.fit(torch.empty(0, 0), torch.empty(0, dtype=torch.long))


def query_losses(model: UnifiedModel, batch: EmbeddingBatch | PairBatch, expert: str, config: TrainingConfig) -> Tensor:
    """Loss of every query of the batch, with all its texts given to one expert, `[Q]`."""
    device = str(model.device)
    if isinstance(batch, EmbeddingBatch):
        queries, documents = (model.embed(part.to(device), expert=expert) for part in batch.texts)
        settings = config.embedding.loss
        logits, _ = infonce_logits(
            queries,
            documents,
            batch.relevant.to(queries.device),
            temperature=settings.temperature,
            false_negative_margin=settings.false_negative_margin,
        )
        return F.cross_entropy(logits, torch.arange(len(queries), device=logits.device), reduction="none")
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
