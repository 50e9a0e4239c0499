"""What can be varied about the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from unimoer.config.adapter import AdapterConfig
from unimoer.config.base import Strict
from unimoer.config.heads import HEADS, HeadKind, HeadName


class TaskHeadConfig(Strict):
    pooling: Literal["last", "mean"] = "last"
    """`last`: the last real token (Qwen3). `mean`: the average over real tokens."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """`bidirectional`: every token sees the whole text, as GritLM embeds (arXiv 2402.09906)."""


class ScoreHeadConfig(TaskHeadConfig):
    head: HeadName = "yes_no"
    """`yes_no`: logit("yes") - logit("no") of the LM head at the pooled state. `linear`: a learned projection of it.
    `mlp`: a learned network of one hidden layer.
    `interaction`: the cosine of the query's and the document's mean states, both read in one pass over the pair, times
    a learned scale. `prompts.pair` needs one control token between the two, such as
    `<|im_start|>{query}<|im_end|>{document}`.
    `listwise`: one prompt holds the query and its candidates; the cosine of learned marks after them, through a
    learned projector (after jina-reranker-v3, arXiv 2509.25085); `pooling` is not used.
    `cosine`: nothing is learned beside the adapter; the cosine of a query that has read its candidates, pooled, and
    each candidate's own vector, the one that retrieval uses too (after E2Rank, arXiv 2510.22733)."""
    list_size: int = Field(20, ge=2)
    """Candidates a prompt of `listwise` and `cosine`. Of more, `listwise` makes several prompts; `cosine` reads the
    first ones."""

    @property
    def kind(self) -> HeadKind:
        return HEADS[self.head]

    @property
    def starts_at_random(self) -> bool:
        """Whether an untrained head is another one for every seed."""
        return self.kind.learned and self.kind.random_start

    @model_validator(mode="after")
    def _pooling_fits_the_head(self) -> ScoreHeadConfig:
        if self.kind.last_token and self.pooling != "last":
            raise ValueError(f"head '{self.head}' reads {self.kind.last_token}: it needs pooling 'last'")
        if self.kind.two_parts and self.pooling != "mean":
            raise ValueError(f"head '{self.head}' compares means of a prompt's two parts: it needs pooling 'mean'")
        return self


class PromptConfig(Strict):
    """Templates; the prompt's own text is never truncated, only `{query}` and `{document}` are."""

    query: str = "Instruct: {instruction}\nQuery:{query}"
    document: str = "{document}"
    pair: str = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    candidates: str = (
        "<|im_start|>system\nRead the Query and the numbered Documents, and judge how relevant each Document is."
        "<|im_end|>\n<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}{mark}\n{candidates}"
        "<Query>: {query}{mark}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    """For heads that read a query with its candidates. `{mark}` is where `listwise` reads: after two mentions of the
    query and in every candidate; other heads leave it out."""
    candidate: str = "<Document {number}>: {document}{mark}\n"
    """One of `{candidates}`."""
    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    append_eos: bool = True
    """End embedding inputs with the end-of-text token, where last-token pooling reads."""
    eos_token: str | None = None
    """That token. Empty: `<|endoftext|>` for Qwen2 and Qwen3, whose chat tokenizers name another one; elsewhere the
    tokenizer's own."""
    max_query_tokens: int = Field(64, ge=4)
    max_document_tokens: int = Field(448, ge=4)


class ModelConfig(Strict):
    base: str = "embedded:smollm2-135m"
    """Hub id, local folder, `.gguf` file, or `embedded:smollm2-135m`."""
    revision: str | None = None
    """Commit or tag of a hub model; pin it for results you publish."""
    layers: int | None = Field(None, ge=1)
    """Keep only the first N decoder layers."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base. `auto`: bfloat16 where the device has units for it, float32 elsewhere."""
    padding: Literal["left", "right"] = "right"
    gradient_checkpointing: bool = False
    adapter: AdapterConfig = AdapterConfig()
    embedding: TaskHeadConfig = TaskHeadConfig()
    reranking: ScoreHeadConfig = ScoreHeadConfig()
    prompts: PromptConfig = PromptConfig()

    @model_validator(mode="after")
    def _marks_are_in_place(self) -> ModelConfig:
        if self.reranking.kind.reads == "marked lists":
            around = self.prompts.candidates.split("{candidates}")
            marks = [part.count("{mark}") for part in (*around, self.prompts.candidate)]
            if marks != [1, 1, 1] or not all("{query}" in part.split("{mark}")[0] for part in around):
                raise ValueError(
                    f"prompts: head '{self.reranking.head}' needs "
                    "{query}{mark} once before {candidates} and once after it in prompts.candidates, and one "
                    "{mark} in prompts.candidate"
                )
        return self

    @model_validator(mode="after")
    def _head_fits_its_attention(self) -> ModelConfig:
        ways = self.embedding, self.reranking
        head = self.reranking
        if head.kind.reads == "lists" and len({(way.pooling, way.attention) for way in ways}) > 1:
            raise ValueError(
                f"reranking: head '{head.head}' compares its vectors with those of embedding; give both the same "
                "pooling and attention"
            )
        if head.kind.reads == "marked lists" and head.attention != "causal":
            raise ValueError(
                f"reranking.attention: head '{head.head}' needs causal: its first mark must not see documents"
            )
        return self

    @model_validator(mode="after")
    def _pilots_are_single_texts(self) -> ModelConfig:
        if self.adapter.router is not None and self.adapter.router.uses_pilots and self.reranking.kind.reads_lists:
            raise ValueError(
                f"adapter.router: 'similarity' chooses an expert for a text; head '{self.reranking.head}' reads lists"
            )
        return self
