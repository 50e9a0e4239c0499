"""Do the tasks pull a layer in different directions? Gradients of both, at the same weights, layer by layer.

Measured on the frozen weights W under the adapters, not on A and B: the factorisation (A, B) -> (RA, B R^-1) leaves
the model unchanged but changes any cosine between gradients of A or B, and the gradient of A is zero at the start.
dL/dW has neither fault. A cosine is only as good as the two gradients it compares, so each probe also measures how
well a task agrees with itself on two halves of its own batch; that reliability is the ceiling for any agreement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unimoer.config import TrainingConfig
from unimoer.data.collate import Collator
from unimoer.data.sampling import TaskSampler
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.unified import UnifiedModel
from unimoer.tracking import JsonlWriter
from unimoer.training.objectives import compute_loss
from unimoer.types import Task


@dataclass(frozen=True)
class LayerConflict:
    """Agreement of two gradients in one layer.

    `magnitude_similarity` is 2 |e| |r| / (|e|^2 + |r|^2) (Yu et al., NeurIPS 2020, arXiv 2001.06782).
    `cosine_corrected` divides the cosine by what the two reliabilities allow (Spearman's correction for
    attenuation); it is null when a reliability is not positive.
    """

    cosine: float
    cosine_corrected: float | None
    reliability_embedding: float
    reliability_reranking: float
    norm_embedding: float
    norm_reranking: float
    magnitude_ratio: float
    magnitude_similarity: float


Halves = tuple[list[Tensor], list[Tensor]]
"""Gradients of one layer's matrices on the two halves of a batch."""


def compare(embedding: Halves, reranking: Halves) -> LayerConflict:
    """Compare two tasks in one layer from the gradients of two halves of each task's batch."""
    halves = [_dot(embedding[0], embedding[0]), _dot(embedding[1], embedding[1]), _dot(*embedding)]
    other = [_dot(reranking[0], reranking[0]), _dot(reranking[1], reranking[1]), _dot(*reranking)]
    cross = sum(_dot(first, second) for first in embedding for second in reranking) / 4
    norm_e = math.sqrt(max(0.0, (halves[0] + halves[1] + 2 * halves[2]) / 4))
    norm_r = math.sqrt(max(0.0, (other[0] + other[1] + 2 * other[2]) / 4))
    cosine = cross / (norm_e * norm_r) if norm_e * norm_r > 0 else 0.0
    reliabilities = [_full_length(*halves), _full_length(*other)]
    ceiling = math.sqrt(reliabilities[0] * reliabilities[1]) if min(reliabilities) > 0 else 0.0
    return LayerConflict(
        cosine=cosine,
        cosine_corrected=max(-1.0, min(1.0, cosine / ceiling)) if ceiling > 0 else None,
        reliability_embedding=reliabilities[0],
        reliability_reranking=reliabilities[1],
        norm_embedding=norm_e,
        norm_reranking=norm_r,
        magnitude_ratio=norm_e / norm_r if norm_r > 0 else 0.0,
        magnitude_similarity=2 * norm_e * norm_r / (norm_e**2 + norm_r**2) if norm_e + norm_r > 0 else 0.0,
    )


def _dot(first: list[Tensor], second: list[Tensor]) -> float:
    return sum(float(torch.sum(a.float() * b.float())) for a, b in zip(first, second, strict=True))


def _full_length(first: float, second: float, cross: float) -> float:
    """Split-half cosine stepped up to the whole batch (Spearman-Brown: 2c / (1 + c))."""
    if first <= 0 or second <= 0:
        return 0.0
    half = cross / math.sqrt(first * second)
    return 2 * half / (1 + half) if half > -1 else -1.0


def frozen_weights(model: UnifiedModel) -> dict[int, list[nn.Parameter]]:
    """The frozen matrices under an adapter, by decoder layer: what the gradient probe differentiates."""
    layers: dict[int, list[nn.Parameter]] = {}
    for name, module in model.decoder.named_modules():
        if isinstance(module, MoELoRALinear) and module.targets:
            layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
            layers.setdefault(layer, []).append(module.weight)
    return layers


class ConflictProbe:
    """Every so many steps, measures both tasks on batches of its own and writes one line a layer.

    Its samplers have a seed of their own: probing never changes what the run trains on, and every probe of a run
    reads fresh batches. Reranking groups use mined negatives throughout, so that probes are comparable over time.
    """

    def __init__(self, every: int, samplers: dict[Task, TaskSampler], collator: Collator, writer: JsonlWriter) -> None:
        self.every = every
        self.samplers = samplers
        self.collator = collator
        self.writer = writer

    def is_due(self, step: int) -> bool:
        return self.every > 0 and (step == 1 or step % self.every == 0)

    def rewind(self, step: int) -> None:
        """Forget lines past `step` and bring the probe's samplers to where they stood then."""
        self.writer.rewind(step)
        for _ in range(sum(self.is_due(s) for s in range(1, step + 1))):
            self._draw()

    def _draw(self) -> dict[Task, list[Any]]:
        """Two half batches of each task, all of one domain, so that the halves differ in queries only."""
        halves: dict[Task, list[Any]] = {}
        for task, sampler in self.samplers.items():
            domain, samples = sampler.next()
            middle = len(samples) // 2
            collate = self.collator.embedding if task is Task.EMBEDDING else self.collator.reranking
            halves[task] = [collate(domain, samples[:middle]), collate(domain, samples[middle:])]
        return halves

    def measure(self, model: UnifiedModel, config: TrainingConfig, step: int) -> None:
        """Write one line a layer for this step; leaves parameters, gradients and random numbers as they were."""
        layers = frozen_weights(model)
        weights = [weight for group in layers.values() for weight in group]
        training = model.training
        model.eval()
        for weight in weights:
            weight.requires_grad_(True)
        gradients: dict[Task, list[dict[int, list[Tensor]]]] = {}
        try:
            for task, halves in self._draw().items():
                gradients[task] = []
                for batch in halves:
                    loss, _ = compute_loss(model, batch, config)
                    flat = iter(torch.autograd.grad(loss, weights))
                    gradients[task].append({index: [next(flat) for _ in group] for index, group in layers.items()})
        finally:
            for weight in weights:
                weight.requires_grad_(False)
            model.train(training)
        for index in layers:
            embedding, reranking = (
                (gradients[task][0][index], gradients[task][1][index]) for task in (Task.EMBEDDING, Task.RERANKING)
            )
            self.writer.write({"step": step, "layer": index, **vars(compare(embedding, reranking))})
