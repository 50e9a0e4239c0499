"""Sparsegen routing: weights that can be exactly zero, with a sparsity that is fixed or learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.config.router import SparsegenConfig
from unimoer.model.routers.base import LearnedRouter, masked_mean
from unimoer.model.routing import RoutingContext

LAMBDA_MARGIN = 1e-2
"""Lambda stays below 1 by so much: at 1 the problem is no longer convex."""


def sparsegen(logits: Tensor, sparsity: Tensor | float) -> Tensor:
    """`argmin_p |p - u|^2 - lambda |p|^2` over the simplex (Laha et al., NeurIPS 2018, arXiv 1810.11975).

    On its support S of size k the solution is `(u_i - mean_S u) / (1 - lambda) + 1 / k`, zero elsewhere.

    Args:
        logits: `[..., E]`, float32 or float64.
        sparsity: lambda < 1, a number or `[..., 1]`.
    """
    # Shifted, which changes nothing: what matters at 1e4 are differences, and those of near numbers are exact.
    u = logits - logits.detach().amax(-1, keepdim=True)
    width = 1 - sparsity
    with torch.no_grad():
        ordered = u.sort(-1, descending=True).values
        sizes = torch.arange(1, u.shape[-1] + 1, device=u.device, dtype=u.dtype)
        inside = width + sizes * ordered > ordered.cumsum(-1)
        k = inside.sum(-1, keepdim=True).clamp(min=1)
        smallest = ordered.gather(-1, k - 1)
        # Ties at the edge are all in or all out: the condition is the same for equal numbers.
        support = u >= smallest
        # In the logits' own precision: 1 / k of an integer would be float32.
        k = support.sum(-1, keepdim=True).to(u.dtype)
    mean = torch.where(support, u, 0).sum(-1, keepdim=True) / k
    return torch.where(support, (u - mean) / width + 1 / k, 0).clamp(min=0)


def sparsity_bound(logits: Tensor, k: int) -> Tensor:
    """The smallest lambda `[..., 1]` at which no more than k experts are active: `1 - (sum_{j<=k} u_j - k u_{k+1})`."""
    ordered = logits.sort(-1, descending=True).values
    return 1 - (ordered[..., :k].sum(-1, keepdim=True) - k * ordered[..., k : k + 1])


class SparsityNetwork(nn.Module):
    """Lambda from what the router reads: one small network for all layers, as LD-MoLE shares it.

    `lambda = 0.99 + logsigmoid(z)`, so it is below 1 by construction; a bias of -2.5 makes it start around -1.6, where
    all experts are active. The hidden units start without a bias: LD-MoLE's, also -2.5, would leave none of them alive
    on inputs that are normalised.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(hidden, width).uniform_(-1, 1))
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.empty(1, hidden).uniform_(-1, 1) * hidden**-0.5)
        self.second_bias = nn.Parameter(torch.full((1,), -2.5))

    def forward(self, projected: Tensor) -> Tensor:
        """`first` applied to the input, `[..., hidden] -> [..., 1]`."""
        z = F.linear(F.relu(projected + self.first_bias), self.second, self.second_bias)
        return 1 - LAMBDA_MARGIN + F.logsigmoid(z)


class SparsegenRouter(LearnedRouter):
    """Sparsegen-routed LoRA (after LD-MoLE, Zhuang et al., ICLR 2026, arXiv 2509.25684).

    Unlike there: one decision a decoder layer instead of one a linear layer; it may read the whole text; its input is
    normalised; the network for lambda is one for the model, of 16 hidden units; and a floor under the weights keeps all
    experts learning. Where a single one is active, every gradient of the router is zero, those of its balance and
    sparsity losses too: there the z-loss is what brings the logits back together.
    """

    config: SparsegenConfig

    def __init__(
        self,
        config: SparsegenConfig,
        experts: Sequence[str],
        units: int,
        width: int,
        network: SparsityNetwork | None = None,
    ) -> None:
        super().__init__(config, experts, units, width)
        self.network = network

    def others(self) -> list[nn.Parameter]:
        return [] if self.network is None else [self.network.first]

    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        if self.network is None:
            assert not isinstance(config.sparsity, str)
            return sparsegen(logits, config.sparsity), {}
        served = self._folded is not None and not self.counts
        sparsity = self.network(x if served else self.project(x, self.network.first, context))
        losses = {}
        if config.sparsity_loss_weight > 0 and self.counts:
            short = F.relu(sparsity_bound(logits.detach(), config.max_active) - sparsity)
            losses["sparsity"] = config.sparsity_loss_weight * masked_mean(short.squeeze(-1), context.mask)
        return sparsegen(logits, sparsity), losses
