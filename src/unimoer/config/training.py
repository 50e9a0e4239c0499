"""What can be varied about training and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unimoer.config.base import Strict
from unimoer.config.gradients import GradientConfig, SumConfig


class InfoNCEConfig(Strict):
    """Contrastive loss over in-batch and mined negatives (van den Oord et al., arXiv 1807.03748)."""

    type: Literal["infonce"] = "infonce"
    temperature: float = Field(0.05, gt=0)
    false_negative_margin: float | None = Field(None, ge=0)
    """Ignore a negative whose cosine exceeds the positive's by more than this (Qwen3-Embedding uses 0.1)."""
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Train the first so many dimensions of a vector as well, with equal weights (arXiv 2205.13147). The full size
    must be among them. Empty: the full size alone."""


class BCEConfig(Strict):
    """Pointwise: binary cross-entropy of each pair's logit."""

    type: Literal["bce"] = "bce"
    positive_weight: float = Field(1.0, gt=0)
    """Weight of a positive pair against one negative."""


class GroupSoftmaxConfig(Strict):
    """Cross-entropy of the positive among the pairs of its own query."""

    type: Literal["group_softmax"] = "group_softmax"
    temperature: float = Field(1.0, gt=0)


class RankNetConfig(Strict):
    """Pairwise: a better document above a worse one of the same query (Burges et al., ICML 2005; E2Rank's loss)."""

    type: Literal["ranknet"] = "ranknet"
    scale: float = Field(10.0, gt=0)
    """Multiplies scores; 10 suits cosines."""


class ListwiseConfig(Strict):
    """Of head `listwise`: the terms of jina-reranker-v3 (arXiv 2509.25085, eq. 1-3), with its weights."""

    type: Literal["listwise"] = "listwise"
    temperature: float = Field(0.25, gt=0)
    disperse_weight: float = Field(0.45, ge=0)
    """Keeps documents of one prompt apart."""
    dual_weight: float = Field(0.85, ge=0)
    """The same ranking from the query's first mention, which has read no document yet."""


RankingLossConfig = Annotated[
    BCEConfig | GroupSoftmaxConfig | RankNetConfig | ListwiseConfig, Field(discriminator="type")
]


class EmbeddingTaskConfig(Strict):
    steps: int = Field(..., ge=1)
    """Optimizer steps this task gets in every arm that trains it."""
    batch_size: int = Field(32, ge=2)
    """Queries a batch; every other query's documents are negatives."""
    negatives: int = Field(0, ge=0)
    """Hard negatives a query, besides the other queries' documents."""
    random_until: float = Field(0.0, ge=0, le=1)
    """Draw hard negatives at random for this share of the steps, from the mined list afterwards."""
    loss: InfoNCEConfig = InfoNCEConfig()
    gradcache_rows: int | None = Field(None, ge=1)
    """Texts computed at a time; the loss still sees the whole batch (GradCache, arXiv 2101.06983). Memory for time."""


class RerankingTaskConfig(Strict):
    steps: int = Field(..., ge=1)
    batch_size: int = Field(12, ge=1)
    """Groups a batch, each one query with one positive."""
    negatives: int = Field(3, ge=1)
    """Negatives a group."""
    random_until: float = Field(0.5, ge=0, le=1)
    """Easy before hard: random negatives for this share of the steps, mined ones afterwards."""
    loss: RankingLossConfig = GroupSoftmaxConfig()


class OptimizerConfig(Strict):
    """AdamW with linear warm-up."""

    lr: float = Field(2e-4, gt=0)
    head_lr: float | None = Field(None, gt=0)
    """For a learned score head; `lr` when empty."""
    router_lr: float | None = Field(None, gt=0)
    """For learned routers; `lr` when empty. Routers learn slowly: what they decide matters only once experts differ."""
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)
    accumulation: int = Field(1, ge=1)
    """Batches a step, their gradients averaged; it does not add in-batch negatives."""


class ProbeConfig(Strict):
    """Gradients of both tasks at the same weights, every so many steps of a joint run."""

    every: int = Field(0, ge=0)
    """Steps between two probes; 0 switches the probe off."""
    batch_size: int = Field(16, ge=4)
    """Queries (and groups) a probe; split in halves for the within-task noise ceiling."""


class StagedTrainingConfig(Strict):
    """Of mode `joint_staged`: embedding first, reranking second, each stage with a warm-up of its own."""

    stage1_epochs: float = Field(1.0, gt=0)
    """In units of the embedding task's own steps: at 1 its exposure is that of its specialist."""
    stage2_epochs: float = Field(1.0, gt=0)
    """In units of the reranking task's own steps."""
    stage1_lr: float = Field(1e-4, gt=0)
    stage2_lr: float = Field(5e-5, gt=0)


class TrainingConfig(Strict):
    embedding: EmbeddingTaskConfig
    reranking: RerankingTaskConfig
    ranking_weight: float = Field(1.0, gt=0)
    """Lambda of mode `joint_mixed`: L = L_embedding + lambda L_reranking."""
    staged: StagedTrainingConfig = StagedTrainingConfig()
    gradients: GradientConfig = SumConfig()
    """How the gradients of the two tasks become one, in steps that have both (`joint_mixed`)."""
    optimizer: OptimizerConfig = OptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    routing_every: int = Field(10, ge=1)
    """Steps of a task between two lines a layer in `routing.jsonl`."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two resumable checkpoints; only the last one is kept."""
    pad_to_multiple: int = Field(16, ge=1)
    """Pad lengths up to a multiple of this: on a CPU every new shape costs the compilation of its kernels."""


class EvaluationConfig(Strict):
    rerank_depth: int = Field(100, ge=1)
    """Candidates a query, from BM25; the same list for every arm."""
    batch_tokens: int = Field(8192, ge=64)
    """Tokens a forward pass, padding included; texts are sorted by length first."""
    bootstrap: int = Field(10_000, ge=100)
    """Draws of every randomisation test; intervals need none."""
    latency_requests: int = Field(20, ge=0)
    """Requests of each task that a trained model is timed on, one at a time; 0: none."""
