"""One experiment: which arms and seeds, on which model and data. The YAML files in `configs/` hold exactly this."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from unimoer.config.arms import BUILTIN, ArmConfig
from unimoer.config.base import Strict, changed
from unimoer.config.data import DataConfig
from unimoer.config.heads import check_loss
from unimoer.config.model import ModelConfig
from unimoer.config.training import EvaluationConfig, TrainingConfig
from unimoer.errors import did_you_mean
from unimoer.types import Task, TrainingMode

HASH_VERSION = 3

RESERVED = ("untrained", "bm25")
"""Names of reference runs."""


class CriterionConfig(Strict):
    """The kill gate: PASS at `pass_at` percent TIR or more on either task, FAIL under `fail_below` on both."""

    metric: Literal["ndcg@10"] = "ndcg@10"
    pass_at: float = 2.0
    fail_below: float = 1.0


class ExperimentConfig(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Lower case; names the output folder."""
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(("emb_only", "rank_only", "joint_single"), min_length=1)
    """By name: those of `config.arms`, and the ones defined here."""
    custom_arms: dict[str, ArmConfig] = Field(default_factory=dict)
    """Arms of your own; see `config.arms` for what one is made of."""
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

    @field_validator("custom_arms")
    @classmethod
    def _new_names(cls, arms: dict[str, ArmConfig]) -> dict[str, ArmConfig]:
        for name in arms:
            if name in BUILTIN or name in RESERVED:
                raise ValueError(f"'{name}' is taken; choose another name")
            if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
                raise ValueError(f"'{name}': lower-case letters, digits and underscores only; it names folders")
        return arms

    @model_validator(mode="after")
    def _arms_are_known(self) -> ExperimentConfig:
        for name in self.arms:
            self.arm(name)
        if self.model.adapter.experts is not None or self.model.adapter.router is not None:
            raise ValueError("model.adapter: arms bring their own experts and router; define one under custom_arms")
        return self

    @model_validator(mode="after")
    def _loss_fits_the_head(self) -> ExperimentConfig:
        head, task = self.model.reranking, self.training.reranking
        check_loss(head.head, task.loss)
        if head.kind.reads_lists and task.negatives >= head.list_size:
            raise ValueError(
                f"training.reranking.negatives: {task.negatives} and a positive do not fit into one prompt of "
                f"model.reranking.list_size {head.list_size}"
            )
        return self

    @model_validator(mode="after")
    def _domains_are_used(self) -> ExperimentConfig:
        if not any(domain.train for domain in self.data.domains.values()):
            raise ValueError("data.domains: at least one domain needs train: true")
        if not any(domain.evaluate for domain in self.data.domains.values()):
            raise ValueError("data.domains: at least one domain needs evaluate: true")
        return self

    def arm(self, name: str) -> ArmConfig:
        """The definition of an arm.

        Raises:
            ValueError: there is none of this name.
        """
        known = {**BUILTIN, **self.custom_arms}
        if name not in known:
            raise ValueError(f"arms: unknown arm '{name}'{did_you_mean(name, known)}")
        return known[name]

    def steps(self, mode: TrainingMode, task: Task) -> int:
        """Optimizer steps in which a task takes part, in runs of one mode."""
        if task not in mode.tasks:
            return 0
        steps = self.training.embedding.steps if task is Task.EMBEDDING else self.training.reranking.steps
        if self.budget == "total":
            steps //= len(mode.tasks)
        if mode is TrainingMode.JOINT_STAGED:
            staged = self.training.staged
            steps = round(steps * (staged.stage1_epochs if task is Task.EMBEDDING else staged.stage2_epochs))
        return steps

    def run_hash(self, arm: str, seed: int) -> str:
        """Eight hex digits over everything that can change the numbers of one run.

        Settings at their defaults are left out: a setting that is added later leaves finished runs what they are. So a
        default that changes is a change of `HASH_VERSION`.
        """
        content = {name: changed(getattr(self, name)) for name in ("model", "data", "training", "evaluation")}
        # How often a run is saved, its routing logged, or a request timed, and how intervals are drawn, does not count.
        for section, name in (
            ("training", "checkpoint_every"),
            ("training", "routing_every"),
            ("evaluation", "bootstrap"),
            ("evaluation", "latency_requests"),
        ):
            content[section].pop(name, None)
        known = {**BUILTIN, **self.custom_arms}
        if arm not in known or known[arm].mode is not TrainingMode.JOINT_STAGED:
            content["training"].pop("staged", None)
        identity = {
            "version": HASH_VERSION,
            "arm": arm,
            "definition": changed(known[arm]) if arm in known else None,
            "seed": seed,
            "budget": self.budget,
        }
        text = json.dumps({**content, **identity}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
