"""One experiment: which arms and seeds, on which model and data. The YAML files in `configs/` hold exactly this."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, field_validator, model_validator

from unimoer.config.base import Strict
from unimoer.config.data import DataConfig
from unimoer.config.model import ModelConfig
from unimoer.config.training import EvaluationConfig, TrainingConfig
from unimoer.types import Task, TrainingMode


class CriterionConfig(Strict):
    """The kill gate: PASS at `pass_at` percent TIR or more on either task, FAIL under `fail_below` on both."""

    metric: Literal["ndcg@10"] = "ndcg@10"
    pass_at: float = 2.0
    fail_below: float = 1.0


class ExperimentConfig(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Lower case; names the output folder."""
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: tuple[TrainingMode, ...] = (TrainingMode.EMB_ONLY, TrainingMode.RANK_ONLY, TrainingMode.JOINT_SINGLE)
    budget: Literal["per_task", "total"] = "per_task"
    """`per_task`: a joint arm gives each task all the steps its specialist had, on the same batches in the same
    order. `total`: a joint arm has as many steps as a specialist, half of them for each task."""
    criterion: CriterionConfig = CriterionConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Besides `metrics.jsonl`, which is always written."""

    @field_validator("seeds", "arms")
    @classmethod
    def _distinct(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) != len(values):
            raise ValueError("values must be distinct")
        return values

    @model_validator(mode="after")
    def _domains_are_used(self) -> ExperimentConfig:
        if not any(domain.train for domain in self.data.domains.values()):
            raise ValueError("data.domains: at least one domain needs train: true")
        if not any(domain.evaluate for domain in self.data.domains.values()):
            raise ValueError("data.domains: at least one domain needs evaluate: true")
        return self

    def steps(self, arm: TrainingMode, task: Task) -> int:
        """Optimizer steps of one task in one arm."""
        if task not in arm.tasks:
            return 0
        steps = self.training.embedding.steps if task is Task.EMBEDDING else self.training.reranking.steps
        return steps // len(arm.tasks) if self.budget == "total" else steps

    def run_hash(self, arm: str, seed: int) -> str:
        """Eight hex digits over everything that can change the numbers of one run."""
        content = self.model_dump(mode="json", include={"budget", "model", "data", "training", "evaluation"})
        # How often a run is saved, and how its intervals are drawn, does not change it.
        content["training"].pop("checkpoint_every")
        content["evaluation"].pop("bootstrap")
        text = json.dumps({**content, "arm": arm, "seed": seed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
