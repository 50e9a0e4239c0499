"""Token and task routing in one, mixed layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimoer.config.router import HierarchicalConfig
from unimoer.model.routers.base import LearnedRouter, own_experts
from unimoer.model.routers.reading import TASKS
from unimoer.model.routing import RoutingContext


class HierarchicalRouter(LearnedRouter):
    """`(1 - g) softmax(W x) + g softmax(v_task)` with a learned gate g of the layer (after HMoRA, ICLR 2025).

    Shallow layers start with the tokens deciding, deep ones with the task. Unlike there: the task is given, so its
    router is one learned vector a task instead of an encoder over the text; nothing is cut to the top k; experts have
    their own A; and the divergence loss falls on the token router alone, batch by batch.
    """

    config: HierarchicalConfig
    by_unit: ClassVar[Mapping[str, int]] = {**LearnedRouter.by_unit, "task_logits": 1}

    def __init__(
        self, config: HierarchicalConfig, experts: Sequence[str], units: int, width: int, depth: float
    ) -> None:
        super().__init__(config, experts, units, width)
        self.task_logits = nn.Parameter(torch.randn(len(TASKS), units) * 0.1)
        if config.task_prior > 0:
            # Where the gate leaves no say to the token router, its bias would not count.
            self.task_logits.data += config.task_prior * own_experts(experts)
        self.gate = nn.Parameter(torch.tensor((2 * depth - 1) * config.gate_spread))

    def weigh(self, logits: Tensor, x: Tensor, context: RoutingContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        by_token = logits.softmax(-1)
        by_task = (self.task_logits[TASKS.index(context.task)] / config.temperature).softmax(-1)
        gate = torch.sigmoid(self.gate)
        # The bounds are steps, as in the paper: past them one router alone decides, and the gate learns no more.
        gate = torch.where(gate < config.gate_low, torch.zeros_like(gate), gate)
        gate = torch.where(gate > config.gate_high, torch.ones_like(gate), gate)
        losses = {}
        if self.counts:
            divergence = clamped_divergence(by_token, context.mask, config.balance_goal, config.certainty_goal)
            losses["divergence"] = config.divergence_loss_weight * divergence
        return torch.lerp(by_token, by_task.expand_as(by_token), gate), losses


def clamped_divergence(probabilities: Tensor, mask: Tensor, balance_goal: float, certainty_goal: float) -> Tensor:
    """What the generalised Jensen-Shannon divergence of the decisions lacks of its goal, over log E; 0 once reached.

    The divergence is the entropy of the mean decision less the mean entropy. The first is not asked to exceed
    `balance_goal` log E, the second not to fall below `certainty_goal` log E. `probabilities [B, T or 1, E]`.
    """
    largest = math.log(probabilities.shape[-1])
    flat = probabilities.flatten(0, 1)
    real = torch.ones_like(flat[:, 0]) if probabilities.shape[1] == 1 else mask.flatten().to(flat.dtype)
    share = real / real.sum().clamp(min=1)
    mean = share @ flat
    balance = _entropy(mean).clamp(max=balance_goal * largest)
    certainty = share @ _entropy(flat).clamp(min=certainty_goal * largest)
    return torch.relu((balance_goal - certainty_goal) * largest - (balance - certainty)) / largest


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities.clamp(min=1e-12)).sum(-1)
