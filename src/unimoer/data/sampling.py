"""The order of examples: one stream a task, a function of the seed alone.

Both tasks of a joint run read the streams that their specialists read, so every arm sees the same batches in the
same order. A stream's whole state is a few numbers, which the checkpoint holds.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
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


class DomainOrder:
    """An endless order of domains in which every domain has its share of any stretch, a function of the seed alone.

    Positions are given to domains by earliest deadline: the j-th turn of a domain of share p lies between positions
    (j - 1) / p and j / p (the chairman assignment problem, Tijdeman 1980). So at the end of any cycle a domain's count
    differs from its share by less than 1, and inside a cycle by less than 1 plus its share of the cycle. A cycle is the
    shortest stretch in which the smallest share comes to one turn; its turns are shuffled.
    """

    def __init__(self, weights: Mapping[str, float], key: str) -> None:
        # As fractions of the decimals that were written: no rounding that would drift over a long run.
        exact = {domain: Fraction(str(weight)) for domain, weight in sorted(weights.items())}
        total = sum(exact.values())
        self.shares = {domain: weight / total for domain, weight in exact.items()}
        self.cycle = math.ceil(1 / min(self.shares.values()))
        self._key = key
        self._restart()

    def at(self, position: int) -> str:
        """The domain of a batch, counted from 0; quickest in ascending order."""
        cycle, place = divmod(position, self.cycle)
        if cycle < self._dealt - 1:
            self._restart()
        while self._dealt <= cycle:
            self._deal()
        return self._deck[place]

    def _restart(self) -> None:
        self._turns = dict.fromkeys(self.shares, 0)
        self._deck: list[str] = []
        self._dealt = 0

    def _deal(self) -> None:
        start = self._dealt * self.cycle
        turns = [self._turn(position) for position in range(start, start + self.cycle)]
        order = np.random.default_rng(_seed(f"{self._key}|domains|{self._dealt}")).permutation(self.cycle)
        self._deck = [turns[int(place)] for place in order]
        self._dealt += 1

    def _turn(self, position: int) -> str:
        # A domain whose next turn may not yet begin would be more than its share ahead.
        ready = [d for d, share in self.shares.items() if self._turns[d] < (position + 1) * share]
        domain = min(ready, key=lambda d: (math.ceil((self._turns[d] + 1) / self.shares[d]), d))
        self._turns[domain] += 1
        return domain


class TaskSampler:
    """Batches of one domain each; domains by weight (`DomainOrder`), examples by a fresh permutation every epoch.

    Args:
        examples: training examples by domain.
        document_ids: every document of each domain, for random negatives.
        weights: relative share of batches by domain.
        families: for each domain, document id -> family (`RetrievalDataset.families`); relatives of an example's
            positives are never drawn at random.
    """

    def __init__(
        self,
        task: Task,
        examples: Mapping[str, Sequence[Example]],
        document_ids: Mapping[str, Sequence[str]],
        weights: Mapping[str, float],
        config: SamplerConfig,
        seed: int,
        families: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.domains = sorted(examples)
        self.examples = examples
        self.document_ids = document_ids
        self.config = config
        self._families = families or {}
        for domain in self.domains:
            left = self._fewest_negatives(domain)
            if left < config.negatives:
                raise UserError(
                    f"data.domains.{domain}: {len(document_ids[domain])} documents are too few to draw "
                    f"{config.negatives} negatives beside the positives and their families; "
                    f"lower training.{task}.negatives to {left}"
                )
        self._key = f"{seed}|{task.value}"
        self._order = DomainOrder({domain: weights[domain] for domain in self.domains}, self._key)
        self._rng = np.random.default_rng(_seed(self._key))
        self._cursors = dict.fromkeys(self.domains, 0)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        self.batches = 0

    def next(self) -> tuple[str, list[Sample]]:
        """The next batch: its domain and samples."""
        domain = self._order.at(self.batches)
        samples = [self._sample(domain, self._next_example(domain)) for _ in range(self.config.batch_size)]
        self.batches += 1
        return domain, samples

    def _fewest_negatives(self, domain: str) -> int:
        """How many documents can be drawn at random for the example that leaves the fewest."""
        families = self._families.get(domain, {})
        pool = set(self.document_ids[domain])
        sizes = Counter(families[key] for key in pool if key in families)
        fewest = len(pool)
        for example in self.examples[domain]:
            related = {families[key] for key in example.positive_ids if key in families}
            alone = sum(key in pool and key not in families for key in example.positive_ids)
            fewest = min(fewest, len(pool) - alone - sum(sizes[family] for family in related))
        return fewest

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
        pool, families = self.document_ids[domain], self._families.get(domain, {})
        related = {families[key] for key in example.positive_ids if key in families}
        while len(chosen) < wanted:
            candidate = pool[int(self._rng.integers(len(pool)))]
            if (
                candidate not in example.positive_ids
                and candidate not in chosen
                and families.get(candidate) not in related
            ):
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
