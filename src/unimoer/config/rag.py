"""What can be varied about retrieval-augmented generation: questions, systems, retrieval, prompts, the generator."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from unimoer.config.base import Strict
from unimoer.config.evaluation import SuiteName

System = Literal["unified", "two_models", "bm25_only", "no_retrieval"]
"""In the order in which they run and stand in tables."""

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class QuestionsConfig(Strict):
    """One set of questions with accepted answers, and the passages that are searched for them."""

    source: str
    """`embedded:hpo`, `embedded:attack` or `embedded:cwe`; a `.jsonl` file; `hf:ID#CONFIG` or a local `save_to_disk`
    folder; `ir:ID`."""
    split: str | None = None
    """Of embedded domains (empty: `test`), and of `hf:` sources, here or as `answers` (empty: `validation`)."""
    ask: Literal["examples", "descriptions"] = "examples"
    """Of embedded domains. `examples`: the domain's own queries, such as what somebody did with a technique.
    `descriptions`: a document's own text with its name taken out, which word search finds at once."""
    answers: str | None = None
    """Of `ir:` sources without answers: an `hf:` source of the same questions that has them."""
    passages: str | None = None
    """A `.jsonl`, a folder of texts, a BEIR folder, `embedded:`, `hf:` or `ir:` source. Empty: those that the source
    brings, which a `.jsonl` and most `hf:` sources do not."""
    sample: int | None = Field(None, ge=1)
    """Ask this many, drawn by `seed`; all when empty."""
    documents: int | None = Field(None, ge=1)
    """Keep the passages that are known to answer, and sample others up to this many; all when empty."""

    @model_validator(mode="after")
    def _fits_the_source(self) -> QuestionsConfig:
        kind = self.source.partition(":")[0]
        if self.answers is not None and (kind != "ir" or not self.answers.startswith("hf:")):
            raise ValueError("answers: is an `hf:` source, for questions of an `ir:` source that brings no answers")
        if self.ask != "examples" and kind != "embedded":
            raise ValueError("ask: is of embedded domains; other sources bring their questions")
        if self.split is not None and kind not in ("embedded", "hf") and self.answers is None:
            raise ValueError("split: is of `embedded:` and `hf:` sources; an `ir:` id names its own")
        if self.split is not None and self.ask == "descriptions":
            raise ValueError("split: descriptions are of all documents, which are in no split; leave it out")
        return self


class TwoModelsConfig(Strict):
    """Two checkpoints: run folders, saved folders or released models."""

    embedder: str
    reranker: str


class RetrievalConfig(Strict):
    retrieve: Literal["fused", "dense", "bm25"] = "fused"
    """As `SearchIndex.search` has it."""
    depth: int = Field(100, ge=1)
    """Passages that each kind of search brings into a fusion."""
    rerank: int = Field(0, ge=0)
    """Score this many of the best again, with the question beside each; 0: none."""
    first_stage_weight: float = Field(0.5, ge=0)
    """Weight of the retrieval's standardised scores where the score head's have 1; 0: the head alone."""
    passages: int = Field(3, ge=1)
    """k: how many of the best the generator reads."""

    @model_validator(mode="after")
    def _enough_is_reranked(self) -> RetrievalConfig:
        if 0 < self.rerank < self.passages:
            raise ValueError(f"rerank: {self.rerank} is below passages, {self.passages}: the rest would stay unscored")
        return self


_READ = """Answer each question with a name or a short phrase from its passages.

Passages:
- Kettle: a vessel with a handle and a spout, in which water is boiled.
- Frying pan: a flat pan in which food is fried in oil.
Question: What is water for tea heated in?
Answer: Kettle

Passages:
- Nocturnal animal: it sleeps by day and is awake at night.
- Migratory bird: it leaves for the south in autumn and comes back in spring.
Question: Which kind of animal is this an example of? Swallows fly to Africa every September.
Answer: Migratory bird

Passages:
{passages}Question: {question}
Answer:"""

_KNOW = """Answer each question with a name or a short phrase.

Question: What is water for tea heated in?
Answer: Kettle

Question: Which kind of animal is this an example of? Swallows fly to Africa every September.
Answer: Migratory bird

Question: {question}
Answer:"""


class RagPromptConfig(Strict):
    """Templates of the one message that a generator gets."""

    with_passages: str = _READ
    without: str = _KNOW
    """Where there is no passage: closed book, or nothing found."""
    passage: str = "- {passage}\n"
    """One of `{passages}`, best first; `{number}` counts them."""
    passage_words: int = Field(100, ge=1)
    """Each passage is cut to this many."""

    @field_validator("with_passages", "without", "passage")
    @classmethod
    def _holds_its_fields(cls, template: str, info: Any) -> str:
        fields = {"with_passages": ("passages", "question"), "without": ("question",), "passage": ("passage",)}
        for name in fields[info.field_name]:
            if len(re.findall(rf"\{{{name}\}}", template)) != 1:
                raise ValueError(f"must contain {{{name}}} exactly once")
        return template


class BaseGeneratorConfig(Strict):
    """A frozen decoder itself, without any adapter, greedy."""

    type: Literal["base"] = "base"
    base: str = "embedded:smollm2-135m"
    """Hub id, folder, GGUF file or embedded model."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    new_tokens: int = Field(32, ge=1)
    """At most; it ends earlier at its end token, and at the end of its first line."""


class EndpointGeneratorConfig(Strict):
    """Any server that speaks OpenAI's chat completions."""

    type: Literal["endpoint"]
    url: str = Field(pattern=r"^https?://")
    """Up to `/v1`, without `/chat/completions`."""
    model: str
    key_variable: Variable | None = None
    """The environment variable that holds the key; the key itself is written nowhere."""
    parameters: dict[str, Any] = Field({"temperature": 0, "max_tokens": 32})
    """Sent beside model and message."""
    timeout: float = Field(60.0, gt=0)
    """Seconds without a byte."""
    retries: int = Field(5, ge=0)
    """After 429, 5xx and broken connections, with growing waits, or as long as `Retry-After` says."""
    longest_wait: float = Field(60.0, gt=0)
    """Seconds before one retry; a server that asks for more ends the run, which goes on later."""


GeneratorConfig = Annotated[BaseGeneratorConfig | EndpointGeneratorConfig, Field(discriminator="type")]


class RagConfig(Strict):
    name: str = Field("rag", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Names the output folder."""
    seed: int = 0
    """Of the samples of questions and passages."""
    questions: dict[SuiteName, QuestionsConfig] = Field(min_length=1)
    unified: str | None = "smollm2-135m-search"
    """The checkpoint that does both stages; empty: leave the system out."""
    two_models: TwoModelsConfig | None = None
    baselines: tuple[Literal["bm25_only", "no_retrieval"], ...] = ("bm25_only", "no_retrieval")
    retrieval: RetrievalConfig = RetrievalConfig()
    prompt: RagPromptConfig = RagPromptConfig()
    generator: GeneratorConfig = BaseGeneratorConfig()
    memory_questions: int = Field(4, ge=1)
    """Questions that a fresh process answers while its memory is measured."""

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> RagConfig:
        if not self.systems:
            raise ValueError("unified: no system is left; name a checkpoint, two_models, or baselines")
        if self.two_models is not None and self.retrieval.rerank == 0:
            raise ValueError(
                "retrieval.rerank: is 0, so the second of two_models would do nothing; set it, or leave them out"
            )
        return self

    @property
    def systems(self) -> tuple[System, ...]:
        wanted = {"unified": self.unified, "two_models": self.two_models} | dict.fromkeys(self.baselines, "")
        return tuple(name for name in get_args(System) if wanted.get(name) is not None)
