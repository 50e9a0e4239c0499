"""What can be varied about the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from unimoer.config.adapter import AdapterConfig
from unimoer.config.base import Strict


class TaskHeadConfig(Strict):
    pooling: Literal["last", "mean"] = "last"
    """`last`: the last real token (Qwen3). `mean`: the average over real tokens."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """`bidirectional`: every token sees the whole text, as GritLM embeds (arXiv 2402.09906)."""


class ScoreHeadConfig(TaskHeadConfig):
    head: Literal["yes_no", "linear", "mlp"] = "yes_no"
    """`yes_no`: logit("yes") - logit("no") of the LM head at the pooled state. `linear`: a learned projection of it.
    `mlp`: a learned network of one hidden layer."""

    @model_validator(mode="after")
    def _head_reads_one_token(self) -> ScoreHeadConfig:
        if self.head == "yes_no" and self.pooling != "last":
            raise ValueError("head 'yes_no' reads the token after the prompt's suffix: it needs pooling 'last'")
        if self.head == "mlp" and self.pooling != "last":
            raise ValueError("head 'mlp' reads the last token: it needs pooling 'last'")
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
    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    append_eos: bool = True
    """End embedding inputs with the tokenizer's end-of-text token, where last-token pooling reads."""
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
