"""Routers that learn nothing: by task, by similarity, uniform, random. Rivals and nulls of the learned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unimoer.config.router import SHARED, RandomFrozenConfig, UniformConfig
from unimoer.model.routers.base import LearnedRouter, Router
from unimoer.model.routing import Routing, RoutingContext


class HardRouter(Router):
    """The expert of the task (Jina Embeddings v3, arXiv 2409.10173). The other experts are not even computed.

    An expert that a step leaves out gets no gradient at all, so the optimizer does not move it: training is that of
    two separate adapters. Unlike Jina's, all experts are of one adapter on all projections, and there are two tasks.
    """

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        return Routing((context.task.value,))


class HardSharedRouter(Router):
    """The expert of the task plus the shared expert, with weight 1 each: weights that sum to 2, on purpose.

    The two updates add up as two halves of one LoRA do.
    """

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        return Routing((context.task.value, SHARED))


class SoleRouter(Router):
    """A layer that has a single expert."""

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        return Routing(self.experts)


class SimilarityRouter(Router):
    """One expert a text, chosen before the first layer by the nearest pilot (after RouterRetriever, arXiv 2409.02685).

    Trained as the hard switch; `context.choice` decides wherever it is given. Unlike the paper's, documents and
    query-document pairs are routed too, not queries alone, and pilots are centroids in the space of the frozen base.
    """

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        if context.choice is None:
            return Routing((context.task.value,))
        weights = F.one_hot(context.choice, len(self.experts)).float().unsqueeze(1)
        return Routing(self.experts, weights)


class UniformRouter(Router):
    """Equal weights for all texts and layers. With the default gain it is one LoRA of the total rank."""

    def __init__(self, config: UniformConfig, experts: Sequence[str], units: int) -> None:
        super().__init__(config, experts)
        self.units = units

    def forward(self, hidden: Tensor, context: RoutingContext) -> Routing:
        weights = torch.full((len(hidden), 1, self.units), 1 / self.units, device=hidden.device)
        return Routing(self.experts, weights)

    def remove(self, expert: str, kept: Tensor) -> None:
        super().remove(expert, kept)
        self.units = len(kept)


class RandomFrozenRouter(LearnedRouter):
    """A softmax over logits that nobody trained: what routing gives without learning to route.

    What it reads has unit length, so its logits have the deviation `spread` between texts.
    """

    def __init__(self, config: RandomFrozenConfig, experts: Sequence[str], units: int, width: int) -> None:
        super().__init__(config, experts, units, width)
        weight = config.spread * torch.randn(units, width)
        del self.weight
        # A buffer: saved with the model, seen by no optimizer.
        self.register_buffer("weight", weight)

    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        return logits.softmax(-1), {}
