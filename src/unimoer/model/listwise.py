"""Scores from prompts that hold a query and its candidates together.

Two ways to read them. `listwise` marks the query and every candidate, and compares the states at the marks (after
jina-reranker-v3, Wang, Li and Xiao, arXiv 2509.25085). `cosine` takes the whole prompt for a better query, one that
has read the candidates, and compares its vector with each candidate's own (after E2Rank, Liu et al., arXiv 2510.22733).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def place(self, positions: Tensor) -> Marks:
        """Marks for `positions [B, K + 2]`: a query's, K documents', a query's."""
        query, document = self.marks
        middle = document.expand(positions.shape[1] - 2, -1)
        vectors = torch.cat([query.unsqueeze(0), middle, query.unsqueeze(0)])
        return Marks(positions, vectors.expand(len(positions), -1, -1))

    def forward(self, states: Tensor) -> Tensor:
        """`[B, K + 2, d] -> [B, K + 2, d/2]`, unit length."""
        return F.normalize(self.project(states), dim=-1)


def compare(blocks: Sequence[Tensor]) -> Tensor:
    """Vectors of one query's prompts, `[K_i + 2, p]` each -> cosines of all its candidates, `[sum K_i]`.

    They are compared with the average of the prompts' last queries, each weighted by its best candidate: cosines lie
    between -1 and 1, and a prompt whose best one is poor says little about the query.
    """
    queries = [block[-1] * (1 + (block[1:-1] @ block[-1]).max()) / 2 for block in blocks]
    query = F.normalize(torch.stack(queries).sum(0), dim=-1)
    return torch.cat([block[1:-1] for block in blocks]) @ query
