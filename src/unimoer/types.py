"""The nouns of the project. A leaf: imports nothing of ours, and torch only for annotations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade; a grade above 0 is relevant."""

Run = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score; higher is better."""


class Task(StrEnum):
    EMBEDDING = "embedding"
    RERANKING = "reranking"


class Schedule(StrEnum):
    """In what order a run that trains both tasks takes its steps."""

    ALTERNATING = "alternating"
    """A step of one task, then a step of the other."""
    MIXED = "mixed"
    """Both tasks in every step: L = L_embedding + lambda L_reranking."""
    STAGED = "staged"
    """First all of embedding, then all of reranking, each at its own learning rate."""


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """Title and text as one string: what is indexed, embedded and reranked."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True)
class RetrievalDataset:
    """A corpus, its queries, and relevance judgements by split (`train`, `dev`, `test`)."""

    name: str
    corpus: Mapping[str, Document]
    queries: Mapping[str, str]
    qrels: Mapping[str, Qrels]
    notes: str = ""
    families: Mapping[str, str] = field(default_factory=dict)
    """Document id -> name of its family, where it has one. Relatives of a relevant document that nobody judged may be
    relevant too: they are no negatives of its queries."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What was left out while reading, one line for each kind and file, with the number of rows and the first."""

    def split(self, name: str) -> Qrels:
        """Judgements of one split; empty when the data set has none."""
        return self.qrels.get(name, {})

    def families_of(self, documents: Iterable[str]) -> frozenset[str]:
        """The families that these documents belong to."""
        return frozenset(self.families[key] for key in documents if key in self.families)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content; names cached derivatives and stands in every result's provenance."""
        digest = hashlib.sha256()
        for key in sorted(self.corpus):
            document = self.corpus[key]
            digest.update(f"d\0{key}\0{document.title}\0{document.text}\0".encode())
        for key in sorted(self.queries):
            digest.update(f"q\0{key}\0{self.queries[key]}\0".encode())
        for split in sorted(self.qrels):
            for query in sorted(self.qrels[split]):
                for document_id, grade in sorted(self.qrels[split][query].items()):
                    digest.update(f"r\0{split}\0{query}\0{document_id}\0{grade}\0".encode())
        for key in sorted(self.families):
            digest.update(f"f\0{key}\0{self.families[key]}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """One query with judged and mined documents of one domain; both tasks train on the same examples."""

    domain: str
    query_id: str
    query: str
    positive_ids: tuple[str, ...]
    negative_ids: tuple[str, ...]
    """Mined hard negatives, hardest first."""


@dataclass(slots=True)
class TokenBatch:
    """Padded token ids, `[B, T]`. `position_ids` count real tokens, so both padding sides give the same output."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor

    def to(self, device: str) -> TokenBatch:
        return TokenBatch(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
        )

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())


@dataclass(slots=True)
class EmbeddingBatch:
    """Queries `[Q]`; documents `[Q positives | Q*H hard negatives]`, negatives grouped by query.

    `relevant[i, j]` is true where document j is known to be relevant to query i, or is of the family of one that is: it
    is never used as a negative.
    """

    domain: str
    queries: TokenBatch
    documents: TokenBatch
    relevant: Tensor

    @property
    def texts(self) -> tuple[TokenBatch, ...]:
        return self.queries, self.documents


@dataclass(slots=True)
class PairBatch:
    """`G` groups of `K` query-document pairs, flattened to `[G*K]`; `labels [G, K]` with the positive first."""

    domain: str
    pairs: TokenBatch
    labels: Tensor

    @property
    def texts(self) -> tuple[TokenBatch, ...]:
        return (self.pairs,)


@dataclass(slots=True)
class ListBatch:
    """`G` prompts, each with a query and all its `K` documents; `labels [G, K]` in the order of the prompt.

    `marks [G, K + 2]`: positions in the prompt after the query's first mention, each document, and its last mention.
    """

    domain: str
    prompts: TokenBatch
    marks: Tensor
    labels: Tensor

    @property
    def texts(self) -> tuple[TokenBatch, ...]:
        return (self.prompts,)


@dataclass(slots=True)
class FeedbackBatch:
    """`G` prompts of a query and its `K` documents, and the documents alone, flattened to `[G*K]`; `labels [G, K]`."""

    domain: str
    prompts: TokenBatch
    documents: TokenBatch
    labels: Tensor

    @property
    def texts(self) -> tuple[TokenBatch, ...]:
        return self.prompts, self.documents


RerankingBatch = PairBatch | ListBatch | FeedbackBatch
"""What the score head reads decides which."""
