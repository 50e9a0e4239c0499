"""Who finds the passages: an index with the model that made it and one that reranks, BM25 alone, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from unimoer.config.rag import RetrievalConfig
from unimoer.data.bm25 import BM25
from unimoer.data.prompts import is_blank
from unimoer.evaluation.fusion import combine
from unimoer.library import UniMoER
from unimoer.library.hits import timed
from unimoer.search import SearchIndex


class Passage(NamedTuple):
    id: str
    text: str


class Retriever(Protocol):
    def find(self, query: str, took: dict[str, float]) -> list[Passage]:
        """The k best passages, best first; `took` is told the milliseconds of each stage."""


class Indexed:
    """An index on disk, its best reranked by the same model or by another one.

    The reranked order is that of `SearchIndex.search`: the score head's and the retrieval's standardised scores
    together. Both systems go this one way, so that they differ in their models alone.
    """

    def __init__(self, index: SearchIndex, reranker: UniMoER | None, config: RetrievalConfig) -> None:
        """`reranker` may be the index's own model; None where nothing is reranked."""
        self.index, self.reranker, self.config = index, reranker, config

    def find(self, query: str, took: dict[str, float]) -> list[Passage]:
        config = self.config
        wide = max(config.passages, config.rerank)
        found = self.index.search(query, wide, retrieve=config.retrieve, depth=max(config.depth, wide))
        took.update(found.milliseconds)
        texts = {hit.id: hit.text for hit in found.hits}
        order = list(texts)
        if self.reranker is not None and config.rerank and order:
            with timed(took, "rerank"):
                listed = self.reranker.rerank(query, list(texts.values()))
                own = {order[one.index]: one.score for one in listed}
                first = {hit.id: hit.retrieval for hit in found.hits}
                both = combine([({"": own}, 1.0), ({"": first}, config.first_stage_weight)])[""]
                order.sort(key=lambda key: (is_blank(texts[key]), -both[key], key))
        return [Passage(key, texts[key]) for key in order[: config.passages]]


class Words:
    """BM25 over passages in memory, without any model."""

    def __init__(self, passages: Mapping[str, str], config: RetrievalConfig) -> None:
        self.passages, self.config = passages, config
        self._bm25 = BM25(passages)

    def find(self, query: str, took: dict[str, float]) -> list[Passage]:
        with timed(took, "bm25"):
            found = self._bm25.search({"": query}, self.config.passages)[""]
            return [Passage(key, self.passages[key]) for key in found]


class Closed:
    """No passage: what the generator knows by itself."""

    def find(self, query: str, took: dict[str, float]) -> list[Passage]:
        return []
