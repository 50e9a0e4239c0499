"""Softmax routers: dense, top-k, and dense or sparse by entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from unimoer.config.router import TopKConfig, TsallisConfig
from unimoer.model.routers.base import LearnedRouter, masked_mean
from unimoer.model.routing import RoutingContext


class SoftmaxRouter(LearnedRouter):
    """Softmax over all experts."""

    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        return logits.softmax(-1), {}


class TopKRouter(LearnedRouter):
    """The k likeliest experts, their probabilities scaled to sum to 1.

    With `bias_rate`, balance without a loss (Wang et al., arXiv 2408.15664; DeepSeek-V3): a bias that only the choice
    of the k sees moves, once an optimizer step, by the sign of what an expert lacks of the mean load. Unlike there,
    probabilities are a softmax's, not sigmoids.
    """

    config: TopKConfig
    by_unit: ClassVar[Mapping[str, int]] = {**LearnedRouter.by_unit, "bias": 0, "load": 0}
    bias: Tensor
    load: Tensor

    def __init__(self, config: TopKConfig, experts: Sequence[str], units: int, width: int) -> None:
        super().__init__(config, experts, units, width)
        self.register_buffer("bias", torch.zeros(units))
        self.register_buffer("load", torch.zeros(units), persistent=False)

    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        probabilities = logits.softmax(-1)
        chosen = (probabilities.detach() + self.bias).topk(self.config.k, dim=-1).indices
        kept = torch.zeros_like(probabilities).scatter_(-1, chosen, 1.0)
        if self.training and self.config.bias_rate > 0 and torch.is_grad_enabled():
            # Without gradients it is GradCache's first pass, and these tokens will be counted in the second.
            real = 1.0 if kept.shape[1] == 1 else context.mask.to(kept.dtype).unsqueeze(-1)
            self.load += (kept * real).sum((0, 1))
        weights = probabilities * kept
        return weights / weights.sum(-1, keepdim=True), {}

    def after_step(self) -> None:
        super().after_step()
        self.bias += self.config.bias_rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class TsallisRouter(LearnedRouter):
    """All experts where a decision is uncertain, the top of the distribution elsewhere (after DynMoLE, 2504.00661).

    Uncertainty is the normalised Tsallis entropy of the softmax. In sparse mode the sorted probabilities are kept
    while their sum stays within `top_p`, and at least `keep_top_k` of them; nothing is scaled up again, so weights sum
    to less than 1 there, as in the released code. The switch between the modes is a step without a gradient. Unlike
    there, padding does not count in the entropy loss.
    """

    config: TsallisConfig

    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        probabilities = logits.softmax(-1)
        entropy = tsallis_entropy(probabilities, config.q)
        with torch.no_grad():
            ordered, order = probabilities.sort(-1, descending=True)
            kept = ordered.cumsum(-1) <= config.top_p
            kept[..., : config.keep_top_k] = True
            kept |= (entropy > config.threshold).unsqueeze(-1)
            mask = torch.zeros_like(probabilities).scatter_(-1, order, kept.to(probabilities.dtype))
        losses = {"tsallis_entropy": config.entropy_loss_weight * masked_mean(entropy, context.mask)}
        return probabilities * mask, losses


def tsallis_entropy(probabilities: Tensor, q: float) -> Tensor:
    """`(1 - sum p^q) / (q - 1)`, divided by its largest value: 1 for the uniform distribution, 0 for a certain one."""
    units = probabilities.shape[-1]
    largest = (1 - units ** (1 - q)) / (q - 1)
    # p^q has an infinite second derivative at 0, and its gradient there is 0 * inf in some kernels.
    powers = probabilities.clamp(min=1e-12).pow(q)
    return (1 - powers.sum(-1)) / (q - 1) / largest
