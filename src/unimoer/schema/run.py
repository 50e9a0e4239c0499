"""What lies in the folder of one run: its status, its provenance, its logs, and its scores."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from unimoer.schema.base import Record
from unimoer.types import Task


class Hardware(Record):
    cpu: str | None = None
    cores: int | None = None
    memory_gb: float | None = None
    device: str = "cpu"
    gpu: str | None = None
    """Its name, where the device is one."""


class Environment(Record):
    """What a reader needs to judge or repeat a measurement."""

    git_commit: str | None = None
    git_dirty: bool | None = None
    packages: dict[str, str] = {}
    python: str = ""
    hardware: Hardware = Hardware()
    time: str = ""
    key: str = ""
    """Training key of the run."""
    seed: int = 0
    data: dict[str, str] = {}
    """Fingerprint of every training domain."""


class ServingCosts(Record):
    """Of the model as it would be served."""

    weights_mb: float
    embedding_ms: float | None = None
    embedding_ms_p95: float | None = None
    reranking_ms: float | None = None
    reranking_ms_p95: float | None = None


class TrainingSummary(Record):
    """What training took."""

    steps: int
    tokens: int
    tokens_per_second: float
    padding_waste: float
    train_seconds: float
    peak_memory_mb: float
    trainable_parameters: int
    router_moved: float | None = None
    """Relative change of the routers' parameters since the start; None without routers, 0 where none learned."""


class RunStatus(Record):
    """How far a run is; written at every change."""

    state: Literal["running", "done"]
    arm: str
    seed: int
    variant: str = ""
    training: TrainingSummary | None = None
    serving: ServingCosts | None = None
    eval_seconds: float = 0.0
    peak_memory_mb: float = 0.0


class EvaluationSummary(Record):
    """`metrics.json` beside the per-query scores of one collection and task."""

    dataset: str
    task: Task
    arm: str
    seed: int
    suite: str
    key: str
    """Evaluation key."""
    step: int | None = None
    """Steps of a task after which the weights were kept; None for the end."""
    queries: int
    documents: int
    fingerprint: str
    metrics: dict[str, float]
    first_stage: str | None = None
    depth: int | None = None
    ceiling: dict[str, float] | None = None
    """What a perfect reranker of the candidates would reach: `recall`, `ndcg@10`."""


class TrainingLine(Record):
    """One task's part of one step, of `metrics.jsonl`; a loss may bring terms of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: int
    task: Task
    task_step: int
    domain: str
    loss: float | None = None
    hard: bool | None = None
    """Whether mined negatives were drawn."""


class RoutingLine(Record):
    """What one router did in one logged step, of `routing.jsonl`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: int
    task: Task
    router: str
    experts: list[str] = []
    weights: list[float] = []
    entropy: float | None = None
    active_experts: float | None = None
    one_expert_share: float | None = None


class ConflictLine(Record):
    """Gradients of both tasks in one layer, of `gradient_conflicts.jsonl`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: int
    layer: int | str
    domain: str | None = None
    cosine: float | None = None
    cosine_corrected: float | None = None
    null_cosine: float | None = None
    """The same with one task's labels shuffled."""
    half_cosine_embedding: float | None = None
    """Of the gradients of the two halves of a task's own batch."""
    half_cosine_reranking: float | None = None
    reliability_embedding: float | None = None
    """The same for the whole batch, by Spearman and Brown."""
    reliability_reranking: float | None = None
    norm_embedding: float | None = None
    norm_reranking: float | None = None
    magnitude_ratio: float | None = None
    magnitude_similarity: float | None = None


class QueryScores(Record):
    """One line of `per_query.jsonl`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    query_id: str = Field(coerce_numbers_to_str=True)

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})
