"""What a router reads: states of unit size, centred and scaled by what was measured while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimoer.model.routing import Moments
from unimoer.types import Task

TASKS = tuple(Task)
HORIZON = 100
"""Steps of a task that its running statistics remember; until then all steps count alike."""
SMALLEST = 1e-6
"""Added to a feature's variance. Measured ones of normalised states of SmolLM2-135M lie above 1e-3."""


class Standardiser(nn.Module):
    """Running mean and deviation of each feature over what is decided on, and the map that they give.

    Hidden states of a language model lie close together: what all texts share is ten times what sets them apart. A
    linear router that reads them as they are has the same logits for all texts. Centred, and divided by the deviation
    of each feature, its logits differ as much as its weights say.

    Each task has statistics of its own, and both count alike however many texts and steps they have: the centre lies
    half-way between the tasks, and the variance has the distance between them in it. Statistics are collected by
    `observe` and take effect in `update`, once an optimizer step: within a step, and at inference, they are fixed
    numbers, so neither the other texts of a batch nor training mode change a decision. Before the first step the
    centre is 0 and the scale 1; an adapter is neutral then, whatever its router says.
    """

    centre: Tensor
    scale: Tensor
    means: Tensor
    variances: Tensor
    steps: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("means", torch.zeros(len(TASKS), width))
        self.register_buffer("variances", torch.zeros(len(TASKS), width))
        self.register_buffer("steps", torch.zeros(len(TASKS)))
        self._pending: dict[Task, Moments] = {}

    def observe(self, task: Task, moments: Moments) -> None:
        """Add what one forward pass has read to this step's sums."""
        known = self._pending.get(task)
        self._pending[task] = moments if known is None else known + moments

    @torch.no_grad()
    def update(self) -> None:
        """Take the step's sums into the running statistics."""
        for task, moments in self._pending.items():
            place = TASKS.index(task)
            shift = moments.total / moments.count
            variance = (moments.squares / moments.count - shift * shift).clamp(min=0)
            self.steps[place] += 1
            rate = 1 / self.steps[place].clamp(max=HORIZON)
            distance = self.centre + shift - self.means[place]
            # Of the mixture of two distributions: their distance adds to the variance.
            old = self.variances[place] + rate * distance.square()
            self.variances[place] = (1 - rate) * old + rate * variance
            self.means[place] += rate * distance
        if self._pending:
            seen = (self.steps > 0).to(self.means.dtype)
            share = seen / seen.sum()
            self.centre.copy_(share @ self.means)
            self.scale.copy_((share @ (self.variances + (self.means - self.centre).square()) + SMALLEST).rsqrt())
            self._pending.clear()
