"""Losses on routing decisions. Weights and logits are `[B, T or 1, E]`, masks `[B, T]`; padding never counts."""

from __future__ import annotations

import math

from torch import Tensor


def _flat(values: Tensor, mask: Tensor) -> Tensor:
    """Decisions that count, `[N, E]`."""
    return values.flatten(0, 1) if values.shape[1] == 1 else values[mask.bool()]


def mean_weights(weights: Tensor, mask: Tensor) -> Tensor:
    """The mean weight of each expert, `[E]`."""
    return _flat(weights, mask).mean(0)


def load_balance(mean: Tensor) -> Tensor:
    """`E * sum_e f_e P_e`: 1 when all experts are used alike, E when one does all, where weights sum to 1.

    P is the mean weight and f, without a gradient, the share of the tokens that an expert gets (Fedus et al., JMLR
    2022). Switch gives a token to one expert and counts first choices. Here a token goes to several with a weight, so
    f is the share of weight; first choices flip with the smallest differences, and with them the slope. The value is
    then 1 plus the squared coefficient of variation of P, the importance loss of Shazeer et al. (arXiv 1701.06538),
    at half its slope. A weight of this loss is not comparable with Switch's.
    """
    share = mean.detach() / mean.detach().sum().clamp(min=1e-9)
    return len(mean) * (share * mean).sum()


def z_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of `(log-sum-exp(u) - mean(u) - log E)^2`: 0 when logits are equal, however large.

    The z-loss (Zoph et al., arXiv 2202.08906) without the direction in which weights do not change: squared as it is,
    the log-sum-exp of equal logits is pushed from log E to 0, and logits so far apart that a single expert is left
    rest where it is 0.
    """
    flat = _flat(logits, mask)
    return (flat.logsumexp(-1) - flat.mean(-1) - math.log(flat.shape[-1])).square().mean()
