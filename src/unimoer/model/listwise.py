"""Scores from prompts that hold a query and its candidates together.

Two ways to read them. `listwise` marks the query and every candidate, and compares the states at the marks (after
jina-reranker-v3, Wang, Li and Xiao, arXiv 2509.25085). `cosine` takes the whole prompt for a better query, one that
has read the candidates, and compares its vector with each candidate's own (after E2Rank, Liu et al., arXiv 2510.22733).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.data.prompts import Prompter
from unimoer.errors import UserError
from unimoer.model.routing import RoutingTrace
from unimoer.model.score_head import WHOLE, BatchScores, ScoreHead, Split
from unimoer.types import FeedbackBatch, ListBatch, RerankingBatch

if TYPE_CHECKING:
    from unimoer.model.unified import UnifiedModel


@dataclass(frozen=True, slots=True)
class Marks:
    """Vectors `[B, M, d]` that stand for the tokens at positions `[B, M]`."""

    positions: Tensor
    vectors: Tensor

    def put(self, x: Tensor) -> Tensor:
        """Into embedded tokens `[B, T, d]`."""
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        return x.index_put((rows, self.positions), self.vectors.to(x.dtype))

    def read(self, states: Tensor) -> Tensor:
        """States `[B, T, d]` -> those at the marks, `[B, M, d]`, float32."""
        rows = torch.arange(len(states), device=states.device).unsqueeze(1)
        return states[rows, self.positions].float()


class ListwiseHead(ScoreHead):
    """Two learned marks, one of a query and one of a document, and a projector for the states they lead to.

    Differs from jina-reranker-v3 in that the marks are inputs beside a frozen vocabulary, not words added to it, and in
    the width: half of the model's, which is its 512 at 1,024.
    """

    def __init__(self, words: Tensor) -> None:
        """`words [V, d]`, embedded: the marks start near the mean word, as far from it as a word is."""
        super().__init__()
        width = words.shape[1]
        words = words.float()
        start = words.mean(0) + words.std(0) * torch.randn(2, width)
        self.marks = nn.Parameter(start)
        self.project = nn.Sequential(
            nn.Linear(width, width // 2, bias=False), nn.ReLU(), nn.Linear(width // 2, width // 2, bias=False)
        )

    @classmethod
    @torch.no_grad()
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        """From up to 4,096 words as the layers see them: some decoders scale what is in the table."""
        vocabulary = len(base.get_output_embeddings().weight)
        ids = torch.arange(0, vocabulary, max(1, vocabulary // 4096), device=base.device)
        words: Tensor = base.get_input_embeddings()(ids)
        return cls(words.cpu())

    def score_batch(
        self, model: UnifiedModel, batch: RerankingBatch, trace: RoutingTrace, split: Split = WHOLE
    ) -> BatchScores:
        assert isinstance(batch, ListBatch)
        device = str(model.device)
        own = model.list_vectors(split.share(batch.prompts).to(device), split.part(batch.marks).to(device), trace)
        vectors = split.gather(own, len(batch.labels))
        return BatchScores(torch.einsum("gkp,gp->gk", vectors[:, 1:-1], vectors[:, -1]), vectors)

    def place(self, positions: Tensor) -> Marks:
        """Marks for `positions [B, K + 2]`: a query's, K documents', a query's."""
        query, document = self.marks
        middle = document.expand(positions.shape[1] - 2, -1)
        vectors = torch.cat([query.unsqueeze(0), middle, query.unsqueeze(0)])
        return Marks(positions, vectors.expand(len(positions), -1, -1))

    def forward(self, states: Tensor) -> Tensor:
        """`[B, K + 2, d] -> [B, K + 2, d/2]`, unit length."""
        return F.normalize(self.project(states), dim=-1)


class FeedbackHead(ScoreHead):
    """Head `cosine`: nothing is learned; a query that has read its candidates, against each candidate's own vector."""

    @classmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        return cls()

    def score_batch(
        self, model: UnifiedModel, batch: RerankingBatch, trace: RoutingTrace, split: Split = WHOLE
    ) -> BatchScores:
        assert isinstance(batch, FeedbackBatch)
        device = str(model.device)
        own = model.embed_feedback(split.share(batch.prompts).to(device), trace)
        queries = split.gather(own, len(batch.labels))
        # Routed as the documents of retrieval are: no decision of reranking, and none of its router losses.
        documents = split.gather(model.embed(split.share(batch.documents).to(device)), batch.labels.numel())
        return BatchScores(torch.einsum("gkp,gp->gk", documents.view(*batch.labels.shape, -1), queries))


def check_length(prompter: Prompter, config: ModelConfig, longest: int | None) -> None:
    """Raises: UserError when a full prompt of candidates is longer than the base was made for."""
    size, prompts = config.reranking.list_size, config.prompts
    [frame], _ = prompter.lists([""], [[""] * size])
    mentions = prompts.candidates.count("{query}")
    needed = len(frame) + size * prompts.max_document_tokens + mentions * prompts.max_query_tokens
    if longest is not None and needed > longest:
        raise UserError(
            f"model.reranking.list_size: a prompt of {size} candidates can have {needed:,} tokens, "
            f"{config.base} reads {longest:,}; lower it, or model.prompts.max_document_tokens"
        )


def compare(blocks: Sequence[Tensor]) -> Tensor:
    """Vectors of one query's prompts, `[K_i + 2, p]` each -> cosines of all its candidates, `[sum K_i]`.

    They are compared with the average of the prompts' last queries, each weighted by its best candidate: cosines lie
    between -1 and 1, and a prompt whose best one is poor says little about the query.
    """
    queries = [block[-1] * (1 + (block[1:-1] @ block[-1]).max()) / 2 for block in blocks]
    query = F.normalize(torch.stack(queries).sum(0), dim=-1)
    return torch.cat([block[1:-1] for block in blocks]) @ query
