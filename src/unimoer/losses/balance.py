"""Losses on routing decisions. Weights and logits are `[B, T or 1, E]`, masks `[B, T]`; padding never counts."""

from __future__ import annotations

import torch
from torch import Tensor


def _flat(values: Tensor, mask: Tensor) -> Tensor:
    """Decisions that count, `[N, E]`."""
    return values.flatten(0, 1) if values.shape[1] == 1 else values[mask.bool()]


def usage(weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How often each expert has the largest weight, and its mean weight: f and P, `[E]` each; f has no gradient.

    An exact tie counts for all that share it.
    """
    flat = _flat(weights, mask)
    with torch.no_grad():
        first = (flat == flat.max(-1, keepdim=True).values).to(flat.dtype)
        share = (first / first.sum(-1, keepdim=True)).mean(0)
    return share, flat.mean(0)


def load_balance(share: Tensor, mean: Tensor) -> Tensor:
    """`E * sum_e f_e P_e`: 1 when all experts are used alike, E when one does all (Fedus et al., JMLR 2022)."""
    return len(share) * (share * mean).sum()


def z_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the logits: keeps them small (Zoph et al., arXiv 2202.08906)."""
    return _flat(logits, mask).logsumexp(-1).square().mean()
