"""What can be varied about evaluation: suites of collections, and how their lists for reranking come about."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from unimoer.config.base import Strict

SuiteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names a folder of results, so it holds no path."""


Encoder = Literal["all-minilm-l6-v2", "all-mpnet-base-v2"]
"""Public sentence encoders that can be reference rows; fetched at their first use."""


class CollectionConfig(Strict):
    """One test collection: a corpus, queries, judgements."""

    source: str
    """`embedded:NAME`, a folder in BEIR layout, `hf:ID-OR-FOLDER`, or `ir:ID`."""
    split: str | None = None
    """As the suite has it when empty."""
    queries: int | None = Field(None, ge=1)
    """Sample this many; as the suite has it when empty."""
    documents: int | None = Field(None, ge=1)
    """Keep every document judged in the split and sample others up to this many; as the suite has it when empty."""
    split_identifiers: bool = False
    """Let BM25 split camelCase and snake_case words (code)."""
    instruction: str | None = None
    """Replaces `model.prompts.instruction` for this collection."""
    ignore_identical_ids: bool = False
    """Leave out the document that has the query's own id (ArguAna, Quora)."""


class SuiteConfig(Strict):
    """A named list of collections, ranked and scored alike."""

    collections: str | dict[SuiteName, CollectionConfig] = "embedded"
    """A suite of `evaluation.suites`, a folder of folders in BEIR layout, or collections by name."""
    only: tuple[str, ...] = ()
    """Keep these collections of a named suite or folder; all when empty."""
    split: str = "test"
    queries: int | None = Field(None, ge=1)
    documents: int | None = Field(None, ge=1)
    sample_seed: int = 0
    """Of the samples above: the same for every run, so that arms and seeds share their queries."""
    first_stage: str = "bm25"
    """Where the candidates for reranking come from: `bm25`; `dense`, the model's own search; or TREC run files:
    `path/to/file.trec`, or a folder with one `COLLECTION.trec` for each."""
    rerank_depth: int = Field(100, ge=1)
    """Candidates a query; of `bm25` and run files the same list for every arm."""
    whole_search: bool = False
    """At a run's end, measure more than the two tasks alone: vectors fused with BM25, the reranked order fused with the
    order it was given, and, of one model for both, the fused search reranked by it."""
    first_stage_weight: float | None = Field(None, gt=0)
    """Of whole searches: the weight of BM25's, or the first stage's, standardised scores where the model's have 1;
    choose it on dev. Empty: reciprocal rank fusion, which has nothing to choose."""


class EvaluationConfig(Strict):
    suites: dict[SuiteName, SuiteConfig] = Field({"test": SuiteConfig()}, min_length=1)
    """The first decides; the others are reported beside it."""
    encoders: tuple[Encoder, ...] = ()
    """Public encoders evaluated beside the arms, used as they come (extra `bench`)."""
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps of a task after which a run is evaluated too, on its way."""
    batch_tokens: int = Field(8192, ge=64)
    """Tokens a forward pass, padding included; texts are sorted by length first."""
    latency_requests: int = Field(20, ge=0)
    """Requests of each task that a trained model is timed on, one at a time; 0: none."""
