"""What a search returns, from an index on disk or from somebody's database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    score: float
    """What the order comes from."""
    text: str
    retrieval: float
    """Its score among what was retrieved: a cosine, BM25's, or of both fused."""
    reranking: float | None = None
    """The score head's, of those that were reranked."""


H = TypeVar("H", bound=Hit)


@dataclass(frozen=True, slots=True)
class Hits(Generic[H]):
    hits: list[H]
    milliseconds: dict[str, float]
    """Of each stage: `embed`, `dense`, `bm25`, `rerank`."""


@contextmanager
def timed(milliseconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage took."""
    started = time.perf_counter()
    yield
    milliseconds[stage] = round((time.perf_counter() - started) * 1000, 2)
