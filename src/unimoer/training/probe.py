"""The gradient probe: gradients of both tasks at the same weights, layer by layer, every so many steps.

Measured on the frozen weights W under the adapters, not on A and B: the factorisation (A, B) -> (RA, B R^-1) leaves
the model unchanged but changes any cosine between gradients of A or B, and the gradient of A is zero at the start.
dL/dW has neither fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unimoer.config import ModelConfig, TrainingConfig
from unimoer.data.collate import Collator
from unimoer.data.sampling import Sample, TaskSampler
from unimoer.model.backbone import read_architecture
from unimoer.model.unified import UnifiedModel
from unimoer.tracking import JsonlWriter
from unimoer.training.conflict import compare
from unimoer.training.layers import BLOCK_BYTES, gradient_products
from unimoer.training.objectives import Batch, compute_loss
from unimoer.types import Task

Halves = dict[Task, list[Batch]]
"""Two half batches of each task."""


class ConflictProbe:
    """Every so many steps, measures both tasks on batches of its own and writes one line a layer.

    A probe takes one domain for both tasks: gradients of different domains differ whatever the tasks do. Over the
    probes of a run every domain comes as often as its weight says. The samplers have a seed of their own, so probing
    never changes what the run trains on, and every probe reads fresh batches. Reranking groups use mined negatives
    throughout, so that probes are comparable over time.

    Args:
        samplers: of each domain, one for each task; each knows its domain alone.
        weights: of the domains.
    """

    def __init__(
        self,
        every: int,
        samplers: Mapping[str, Mapping[Task, TaskSampler]],
        weights: Mapping[str, float],
        collator: Collator,
        writer: JsonlWriter,
    ) -> None:
        self.every = every
        self.samplers = samplers
        self.weights = weights
        self.collator = collator
        self.writer = writer
        self.probes = dict.fromkeys(samplers, 0)

    def is_due(self, step: int) -> bool:
        return step == 1 or step % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        samplers = {d: {task.value: s.state_dict() for task, s in found.items()} for d, found in self.samplers.items()}
        return {"probes": self.probes, "samplers": samplers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.probes = dict(state["probes"])
        for domain, samplers in self.samplers.items():
            for task, sampler in samplers.items():
                sampler.load_state_dict(state["samplers"][domain][task.value])

    def draw(self) -> tuple[str, Halves, Halves]:
        """The next domain, two half batches of each task, and the same with shuffled labels."""
        # The domain that lags furthest behind its share.
        domain = min(self.probes, key=lambda name: ((self.probes[name] + 0.5) / self.weights[name], name))
        self.probes[domain] += 1
        real: Halves = {}
        null: Halves = {}
        for task, sampler in self.samplers[domain].items():
            collate = self.collator.embedding if task is Task.EMBEDDING else self.collator.reranking
            _, samples = sampler.next()
            middle = len(samples) // 2
            halves = [samples[:middle], samples[middle:]]
            real[task] = [collate(domain, half) for half in halves]
            null[task] = [collate(domain, shuffled_labels(half)) for half in halves]
        return domain, real, null

    def measure(self, model: UnifiedModel, config: TrainingConfig, step: int) -> None:
        """Write one line a layer for this step; leaves parameters, gradients and random numbers as they were."""
        # The batches are small: no chunks, whose gradients reach what is trained only.
        whole = config.embedding.model_copy(update={"gradcache_rows": None})
        loss = partial(_mean_loss, model, config.model_copy(update={"embedding": whole}))
        domain, real, null = self.draw()
        training = model.training
        model.eval()
        try:
            halves = [partial(loss, [batch]) for task in Task for batch in real[task]]
            found = dict(gradient_products(model, halves))
            nulls = dict(gradient_products(model, [partial(loss, null[task]) for task in Task]))
        finally:
            model.train(training)
        for layer in sorted(found):
            line = vars(compare(found[layer], nulls[layer]))
            self.writer.write({"step": step, "layer": layer, "domain": domain, **line})


def _mean_loss(model: UnifiedModel, config: TrainingConfig, batches: Sequence[Batch]) -> Tensor:
    return torch.stack([compute_loss(model, batch, config)[0] for batch in batches]).mean()


def shuffled_labels(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample with the positive of another: what is left of a gradient when labels mean nothing."""
    shift = max(1, len(samples) // 2)
    strangers = [*samples[shift:], *samples[:shift]]
    return [_relabelled(sample, other.positive_id) for sample, other in zip(samples, strangers, strict=True)]


def _relabelled(sample: Sample, positive: str) -> Sample:
    # A document that is among the negatives changes places with the positive: no document may be both.
    negatives = tuple(sample.positive_id if document == positive else document for document in sample.negative_ids)
    return replace(sample, positive_id=positive, negative_ids=negatives)


def estimate_probe_bytes(model: ModelConfig, training: TrainingConfig, number_bytes: int) -> int:
    """About what a probe needs beside the model, in bytes, when all texts are as long as they may be.

    Args:
        number_bytes: of one number of the base's precision.

    Raises:
        UserError: the base model is missing.
    """
    base = read_architecture(model)
    width, inner = base.hidden_size, base.intermediate_size
    head = getattr(base, "head_dim", None) or width // base.num_attention_heads
    query, keys = base.num_attention_heads * head, 2 * base.num_key_value_heads * head
    # Inputs and outputs of qkv, o, gate_up and down.
    traffic = (width + query + keys) + (query + width) + (width + 2 * inner) + (inner + width)
    prompts, half = model.prompts, training.probe.batch_size // 2
    reads_lists = model.reranking.kind.reads_lists
    frame = _tokens(prompts.candidate if reads_lists else prompts.pair)
    pair = prompts.max_query_tokens + prompts.max_document_tokens + frame
    groups = half * (1 + training.reranking.negatives) * pair
    if reads_lists:
        groups += half * (_tokens(prompts.candidates) + 2 * prompts.max_query_tokens)
    if model.reranking.kind.reads == "lists":
        groups += half * (1 + training.reranking.negatives) * prompts.max_document_tokens
    texts = half * (prompts.max_query_tokens + _tokens(prompts.query))
    texts += half * (1 + training.embedding.negatives) * (prompts.max_document_tokens + _tokens(prompts.document))
    tokens = 2 * (groups + texts)
    kept = tokens * base.num_hidden_layers * width * number_bytes
    # The traffic of one layer, the widest input once more in float32, and what the layer's backward pass holds.
    one_layer = tokens * (traffic * number_bytes + max(inner, query) * 4)
    one_layer += max(groups, texts) * traffic * 2 * number_bytes
    return kept + one_layer + 2 * BLOCK_BYTES


def _tokens(template: str) -> int:
    """Roughly, of a template's own text: three characters a token."""
    return len(template) // 3 + 1
