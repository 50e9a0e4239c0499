"""From hidden states to one vector or one logit a row."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pool(hidden: Tensor, mask: Tensor, how: Literal["last", "mean"]) -> Tensor:
    """`[B, T, d]`, `[B, T]` -> `[B, d]` in float32; works on either padding side.

    There is no first-token pooling: under causal attention position 0 sees nothing but itself.
    """
    if how == "last":
        # argmax finds the first maximum, so the positions are weighted to make the last real one largest.
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    # One batched product instead of a masked copy of all states. In bfloat16 its result would be rounded.
    total = torch.bmm(mask.float().unsqueeze(1), hidden.float()).squeeze(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


class YesNoHead(nn.Module):
    """`logit("yes") - logit("no")` from two frozen rows of the LM head; its sigmoid is Qwen3-Reranker's score.

    With the rest of the vocabulary left out, binary cross-entropy on this logit is the two-way softmax.
    """

    difference: Tensor

    def __init__(self, lm_head: Tensor, yes_id: int, no_id: int) -> None:
        super().__init__()
        difference = lm_head[yes_id].detach().float() - lm_head[no_id].detach().float()
        self.register_buffer("difference", difference, persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """`[B, d] -> [B]`."""
        return state @ self.difference


class LinearHead(nn.Module):
    """A learned projection of the pooled state."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 1, device=device, dtype=torch.float32)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        nn.init.zeros_(self.projection.bias)

    def forward(self, state: Tensor) -> Tensor:
        """`[B, d] -> [B]`."""
        return self.projection(state).squeeze(-1)


class MLPHead(nn.Module):
    """A learned network of one hidden layer, as wide as half the state."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width // 2, device=device, dtype=torch.float32)
        self.projection = nn.Linear(width // 2, 1, device=device, dtype=torch.float32)
        nn.init.normal_(self.hidden.weight, std=width**-0.5)
        nn.init.normal_(self.projection.weight, std=(width // 2) ** -0.5)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.projection.bias)

    def forward(self, state: Tensor) -> Tensor:
        """`[B, d] -> [B]`."""
        return self.projection(F.gelu(self.hidden(state))).squeeze(-1)
