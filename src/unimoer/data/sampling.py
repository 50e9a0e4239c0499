"""The order of examples: one stream a task, a function of the seed alone.

Both tasks of a joint run read the streams that their specialists read, so every arm sees the same batches in the
same order. A stream's whole state is a few numbers, which the checkpoint holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimoer.errors import UserError
from unimoer.types import Example, Task


@dataclass(frozen=True, slots=True)
class Sample:
    """An example with the documents drawn for it this time."""

    example: Example
    positive_id: str
    negative_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    batch_size: int
    negatives: int
    random_until: int
    """Batches before this one draw negatives at random from the corpus, later ones from the mined list."""


class TaskSampler:
    """Batches of one domain each; domains are drawn by weight, examples by a fresh permutation every epoch.

    Args:
        examples: training examples by domain.
        document_ids: every document of each domain, for random negatives.
        weights: relative share of batches by domain.
    """

    def __init__(
        self,
        task: Task,
        examples: Mapping[str, Sequence[Example]],
        document_ids: Mapping[str, Sequence[str]],
        weights: Mapping[str, float],
        config: SamplerConfig,
        seed: int,
    ) -> None:
        self.domains = sorted(examples)
        for domain in self.domains:
            positives = max(len(example.positive_ids) for example in examples[domain])
            if len(document_ids[domain]) - positives < config.negatives:
                raise UserError(
                    f"data.domains.{domain}: {len(document_ids[domain])} documents are too few to draw "
                    f"{config.negatives} negatives beside the positives; lower training.{task}.negatives"
                )
        self.examples = examples
        self.document_ids = document_ids
        self.config = config
        self._key = f"{seed}|{task.value}"
        total = sum(weights[domain] for domain in self.domains)
        self._shares = [weights[domain] / total for domain in self.domains]
        self._rng = np.random.default_rng(_seed(self._key))
        self._cursors = dict.fromkeys(self.domains, 0)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        self.batches = 0

    def next(self) -> tuple[str, list[Sample]]:
        """The next batch: its domain and samples."""
        domain = self.domains[int(self._rng.choice(len(self.domains), p=self._shares))]
        samples = [self._sample(domain, self._next_example(domain)) for _ in range(self.config.batch_size)]
        self.batches += 1
        return domain, samples

    def _next_example(self, domain: str) -> Example:
        pool = self.examples[domain]
        epoch, position = divmod(self._cursors[domain], len(pool))
        self._cursors[domain] += 1
        if domain not in self._orders or self._orders[domain][0] != epoch:
            order = np.random.default_rng(_seed(f"{self._key}|{domain}|{epoch}")).permutation(len(pool))
            self._orders[domain] = (epoch, order)
        return pool[int(self._orders[domain][1][position])]

    def _sample(self, domain: str, example: Example) -> Sample:
        positive = example.positive_ids[int(self._rng.integers(len(example.positive_ids)))]
        wanted = self.config.negatives
        mined = example.negative_ids if self.batches >= self.config.random_until else ()
        chosen: list[str] = []
        if mined:
            picks = self._rng.permutation(len(mined))[:wanted]
            chosen = [mined[int(pick)] for pick in picks]
        # A short mined list is filled up at random.
        pool = self.document_ids[domain]
        while len(chosen) < wanted:
            candidate = pool[int(self._rng.integers(len(pool)))]
            if candidate not in example.positive_ids and candidate not in chosen:
                chosen.append(candidate)
        return Sample(example, positive, tuple(chosen))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the generator's state, and how far each domain has been read."""
        return {"rng": self._rng.bit_generator.state, "cursors": dict(self._cursors), "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._cursors = dict(state["cursors"])
        self.batches = state["batches"]


def _seed(key: str) -> int:
    """A generator seed from text: near seeds give unrelated streams."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
