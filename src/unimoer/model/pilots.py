"""Pilot embeddings: which expert a text belongs to, by what it resembles."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Pilots(nn.Module):
    """Centroids in the space of the frozen base, each owned by one expert; empty until they are fitted.

    Routing by the mean similarity to an expert's pilots, as RouterRetriever's paper has it (arXiv 2409.02685); its
    released code takes the nearest single pilot.
    """

    vectors: Tensor
    owners: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.long))

    def fit(self, vectors: Tensor, owners: Tensor) -> None:
        """Take over pilots `[P, d]`, unit length, and the index of the expert that owns each, `[P]`."""
        self.vectors, self.owners = vectors.to(self.vectors.device), owners.to(self.owners.device)

    def choose(self, states: Tensor) -> Tensor:
        """`[B, d]`, unit length -> index of the expert of each, `[B]`; a tie goes to the first."""
        owned = torch.nn.functional.one_hot(self.owners).float()
        similarity = states @ self.vectors.t() @ owned / owned.sum(0).clamp(min=1)
        # An expert that owns no pilot is never the nearest.
        return similarity.masked_fill(owned.sum(0) == 0, -torch.inf).argmax(-1)

    def remove(self, expert: int) -> None:
        """Forget the pilots of an expert; those after it move up by one."""
        kept = self.owners != expert
        self.vectors, self.owners = self.vectors[kept], self.owners[kept]
        self.owners = self.owners - (self.owners > expert).long()

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the shapes of saved pilots, so that they can be loaded."""
        for name in ("vectors", "owners"):
            saved = tensors.get(f"pilots.{name}")
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
