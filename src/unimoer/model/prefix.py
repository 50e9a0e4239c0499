"""What many prompts begin with, computed once: the instruction and the query of a reranking request.

Under causal attention a token's state depends on what stands before it alone. So the keys and values of a common
beginning, and what a router has summed up over it, are the same for every document that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Prefix:
    """Filled by one forward pass over the beginning, `[1, P]`; read by those over what follows."""

    ids: Tensor
    """`[1, P]`"""
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of each layer, rotated, `[1, KV, P, D]`."""
    sums: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """What routers that read the tokens so far have added up, `[1, 1, k]`."""
    states: Tensor | None = None
    """`[1, P, d]`, after the final norm; None until the beginning was read."""

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def read(self) -> bool:
        return self.states is not None

    def attend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, KV, T, D]` of a layer -> what its queries see: `[B, KV, P + T, D]`, once it was read."""
        if not self.read:
            self.keys_values.append((key, value))
            return key, value
        before, values = (part.expand(len(key), -1, -1, -1) for part in self.keys_values[layer])
        return torch.cat([before, key], dim=2), torch.cat([values, value], dim=2)

    def add(self, whose: tuple[object, ...], running: Tensor) -> Tensor:
        """Running sums over the tokens `[B, T, k]` -> the same with the beginning's.

        `whose`: a router and the weight that it maps with, since layers may share a weight and a router have two.
        """
        key = tuple(map(id, whose))
        if not self.read:
            self.sums[key] = running[:, -1:]
            return running
        return running + self.sums[key]


def common_beginning(rows: Sequence[list[int]]) -> int:
    """Number of tokens that all rows begin with, short of the whole of any."""
    shortest, longest = min(rows), max(rows)
    most = min(map(len, rows)) - 1
    for place in range(most):
        # In the order of their tokens the first and the last differ no later than any two.
        if shortest[place] != longest[place]:
            return place
    return max(most, 0)
