"""What a router reads: states centred and scaled, feature by feature, by what was measured while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimoer.types import Task

TASKS = tuple(Task)
HORIZON = 100
"""Steps of a task that its running statistics remember; until then all steps count alike."""
SMALLEST = 1e-6
"""Added to a feature's variance. Measured ones of normalised states of SmolLM2-135M lie above 1e-3."""


class Standardiser(nn.Module):
    """Running mean and deviation of each feature over what is decided on, and the map that they give.

    Hidden states of a language model lie close together: what all texts share is ten times what sets them apart. A
    linear router that reads them as they are has the same logits for all texts. So they are centred, each feature is
    divided by its deviation, and all by the root of their number: the whole has unit length on average. Weights of
    deviation w then give logits of deviation w, whatever the base and its width, and an optimizer that moves each
    weight by so much moves logits at the same speed in a narrow model and a wide one.

    Each task has statistics of its own, and both count alike however many texts and steps they have: the centre lies
    half-way between the tasks, and the variance has the distance between them in it. What is read is added up by
    the router and takes effect in `update`, once an optimizer step: within a step, and at inference, the map is fixed,
    so neither the other texts of a batch nor training mode change a decision. Before the first step every feature has
    centre 0 and deviation 1; an adapter is neutral then, whatever its router says.
    """

    centre: Tensor
    scale: Tensor
    means: Tensor
    variances: Tensor
    steps: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.full((width,), width**-0.5))
        self.register_buffer("means", torch.zeros(len(TASKS), width))
        self.register_buffer("variances", torch.zeros(len(TASKS), width))
        self.register_buffer("steps", torch.zeros(len(TASKS)))

    @torch.no_grad()
    def update(self, count: Tensor, sums: Tensor) -> None:
        """Take a step's sums in: how many were read of each task, and the sum of their distances from the centre and of
        those squared, `[tasks, 2, d]`. Of several processes, averages of these do as well: only ratios count.
        """
        seen = (count > 0).to(count.dtype)
        self.steps += seen
        shift, square = (sums / count.clamp(min=1e-9)[:, None, None]).unbind(1)
        variance = (square - shift * shift).clamp(min=0)
        # 0 for a task that was not read leaves its statistics as they are.
        rate = (seen / self.steps.clamp(min=1, max=HORIZON)).unsqueeze(1)
        distance = self.centre + shift - self.means
        # Of the mixture of two distributions: their distance adds to the variance.
        self.variances.copy_((1 - rate) * (self.variances + rate * distance.square()) + rate * variance)
        self.means += rate * distance
        share = (self.steps > 0).to(count.dtype)
        share = share / share.sum().clamp(min=1)
        self.centre.copy_(share @ self.means)
        variance = share @ (self.variances + (self.means - self.centre).square()) + SMALLEST
        # Before the first step the deviation stays 1.
        self.scale.copy_(torch.where(share.sum() > 0, (variance * len(variance)).rsqrt(), self.scale))
