"""Scores from prompts that hold a query and its candidates together.

Two ways to read them. `listwise` marks the query and every candidate, and compares the states at the marks (after
jina-reranker-v3, Wang, Li and Xiao, arXiv 2509.25085). `cosine` takes the whole prompt for a better query, one that
has read the candidates, and compares its vector with each candidate's own (after E2Rank, Liu et al., arXiv 2510.22733).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.data.collate import pad, place_marks, reads
from unimoer.types import TokenBatch

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


class ListwiseHead(nn.Module):
    """Two learned marks, one of a query and one of a document, and a projector for the states they lead to.

    Differs from jina-reranker-v3 in that the marks are inputs beside a frozen vocabulary, not words added to it, and in
    the width: half of the model's, which is its 512 at 1,024.
    """

    def __init__(self, embedding: Tensor) -> None:
        """`embedding [V, d]`: the marks start near the mean word, as far from it as a word is."""
        super().__init__()
        width = embedding.shape[1]
        words = embedding.detach().float()
        start = words.mean(0) + words.std(0) * torch.randn(2, width)
        self.marks = nn.Parameter(start)
        self.project = nn.Sequential(
            nn.Linear(width, width // 2, bias=False), nn.ReLU(), nn.Linear(width // 2, width // 2, bias=False)
        )

    def place(self, positions: Tensor) -> Marks:
        """Marks for `positions [B, K + 2]`: a query's, K documents', a query's."""
        query, document = self.marks
        middle = document.expand(positions.shape[1] - 2, -1)
        vectors = torch.cat([query.unsqueeze(0), middle, query.unsqueeze(0)])
        return Marks(positions, vectors.expand(len(positions), -1, -1))

    def forward(self, states: Tensor) -> Tensor:
        """`[B, K + 2, d] -> [B, K + 2, d/2]`, unit length."""
        return F.normalize(self.project(states), dim=-1)


@torch.no_grad()
def score_candidates(
    model: UnifiedModel, query: str, documents: Sequence[str], instruction: str | None = None, *, rows: int = 64
) -> Tensor:
    """Cosines of one query with its candidates, `[K]`, for the heads that read lists.

    More candidates than fit into a prompt: `listwise` reads as many prompts as it takes, in the order given, and
    compares all of them with the average of the prompts' query vectors, weighted by their best candidate;
    `cosine` puts the first ones into the prompt and compares all. `rows` texts are embedded at a time.
    """
    size = model.config.reranking.list_size
    blocks = [documents[start : start + size] for start in range(0, len(documents), size)]
    if reads(model.config.reranking.head) == "lists":
        prompt, _ = _prompt(model, query, blocks[0], instruction)
        texts = model.prompter.documents(documents, instruction)
        parts = [model.embed(_pad(model, texts[start : start + rows])) for start in range(0, len(texts), rows)]
        return torch.cat(parts) @ model.embed_feedback(prompt)[0]
    found, queries = [], []
    for block in blocks:
        prompt, marks = _prompt(model, query, block, instruction)
        vectors = model.list_vectors(prompt, marks)[0]
        found.append(vectors[1:-1])
        # Cosines lie between -1 and 1: a prompt whose best candidate is poor says little about the query.
        queries.append(vectors[-1] * (1 + (vectors[1:-1] @ vectors[-1]).max()) / 2)
    return torch.cat(found) @ F.normalize(torch.stack(queries).sum(0), dim=-1)


def _prompt(
    model: UnifiedModel, query: str, documents: Sequence[str], instruction: str | None
) -> tuple[TokenBatch, Tensor]:
    marked = reads(model.config.reranking.head) == "marked lists"
    ids, marks = model.prompter.lists([query], [documents], instruction, marked=marked)
    batch = _pad(model, ids)
    return batch, place_marks(marks, batch).to(model.device)


def _pad(model: UnifiedModel, ids: Sequence[Sequence[int]]) -> TokenBatch:
    pad_id = model.tokenizer.pad_token_id
    batch = pad(ids, pad_id=pad_id, padding=model.config.padding, multiple=16)
    return batch.to(str(model.device))
