"""One study: which arms and seeds, on which model and data. The YAML files in `configs/` hold exactly this."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from omegaconf import OmegaConf
from pydantic import Field, field_validator, model_validator

from unimoer.config.arms import BUILTIN, START, ArmConfig
from unimoer.config.base import Strict
from unimoer.config.data import DataConfig
from unimoer.config.evaluation import Encoder, EvaluationConfig
from unimoer.config.heads import check_loss
from unimoer.config.model import ModelConfig
from unimoer.config.spec import Resources
from unimoer.config.training import TrainingConfig
from unimoer.errors import did_you_mean
from unimoer.types import Schedule, Task

BM25 = "bm25"
RANDOM = "random"
UNTRAINED = "untrained"
REFERENCES = (BM25, RANDOM, UNTRAINED)
"""Runs that train nothing: what every table compares with."""


def is_reference(system: str) -> bool:
    """Whether a system, by its name in tables, trains nothing and so runs once for all seeds."""
    return system in REFERENCES or system.partition("+")[0] in get_args(Encoder)


_VARIED = ("model", "training", "data", "custom_arms", "arms")
"""Parts of a configuration that a point of a study may change."""

SPECIALIST = {Task.EMBEDDING: "emb_only", Task.RERANKING: "rank_only"}
JOINT = "joint_single"


class CriterionConfig(Strict):
    """The kill gate: PASS at `pass_at` percent TIR or more on either task, FAIL under `fail_below` on both."""

    metric: Literal["ndcg@10"] = "ndcg@10"
    pass_at: float = 2.0
    fail_below: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> CriterionConfig:
        if self.fail_below > self.pass_at:
            raise ValueError(f"fail_below: {self.fail_below:g} is above pass_at, {self.pass_at:g}")
        return self


class StudyConfig(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Lower case; names the output folder."""
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(("emb_only", "rank_only", "joint_single"), min_length=1)
    """By name: those of `config.arms`, the ones defined here, and `NAME_start` for the null of a learned router."""
    custom_arms: dict[str, ArmConfig] = Field(default_factory=dict)
    """Arms of your own; see `config.arms` for what one is made of."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Points of a study that repeats its arms under other settings, by name: dotted keys and values, such as
    `d8: {model.layers: 8}`. Empty: one point, the configuration as it is."""
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
    resources: Resources = Resources()
    """Of one run, for executors that place runs."""

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
            if name in BUILTIN or is_reference(name) or name.endswith(START):
                raise ValueError(f"'{name}' is taken; choose another name")
            if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
                raise ValueError(f"'{name}': lower-case letters, digits and underscores only; it names folders")
        return arms

    @field_validator("variants")
    @classmethod
    def _named_variants(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, changes in variants.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"'{name}': letters, digits, points and dashes only")
            bad = [key for key in changes if key.partition(".")[0] not in _VARIED]
            if bad:
                raise ValueError(f"{name}: '{bad[0]}' is the same for all points of a study")
        return variants

    @model_validator(mode="after")
    def _arms_are_known(self) -> StudyConfig:
        for name in self.arms:
            self.arm(name)
        if self.model.adapter.experts is not None or self.model.adapter.router is not None:
            raise ValueError("model.adapter: arms bring their own experts and router; define one under custom_arms")
        return self

    @model_validator(mode="after")
    def _loss_fits_the_head(self) -> StudyConfig:
        head, task = self.model.reranking, self.training.reranking
        check_loss(head.head, task.loss)
        if head.kind.reads_lists and task.negatives >= head.list_size:
            raise ValueError(
                f"training.reranking.negatives: {task.negatives} and a positive do not fit into one prompt of "
                f"model.reranking.list_size {head.list_size}"
            )
        return self

    @property
    def suite(self) -> str:
        """The suite that decides."""
        return next(iter(self.evaluation.suites))

    def arm(self, name: str) -> ArmConfig:
        """The definition of an arm.

        Raises:
            ValueError: there is none of this name.
        """
        known = {**BUILTIN, **self.custom_arms}
        if name in known:
            return known[name]
        if name.endswith(START) and (learned := known.get(name.removesuffix(START))) is not None:
            null = learned.start()
            if null is None:
                raise ValueError(f"arms: '{name}': the routing of '{name.removesuffix(START)}' is not learned")
            return null
        raise ValueError(f"arms: unknown arm '{name}'{did_you_mean(name, known)}")

    def steps(self, arm: ArmConfig, task: Task) -> int:
        """Optimizer steps in which a task takes part, in runs of one arm."""
        if task not in arm.tasks:
            return 0
        steps = self.training.embedding.steps if task is Task.EMBEDDING else self.training.reranking.steps
        if self.budget == "total":
            steps //= len(arm.tasks)
        if arm.schedule is Schedule.STAGED:
            staged = self.training.staged
            steps = round(steps * (staged.stage1_epochs if task is Task.EMBEDDING else staged.stage2_epochs))
        return steps


def override(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a configuration with dotted keys replaced.

    A key that ends in `.type` changes the member of a union; a union's member is replaced, not merged: the fields of
    the old one would be unknown to the new one.
    """
    found: Any = OmegaConf.create(content)
    for key, value in changes.items():
        if key.endswith(".type"):
            key, value = key.removesuffix(".type"), {"type": value}
        OmegaConf.update(found, key, value, merge=not (isinstance(value, dict) and "type" in value))
    plain: Any = OmegaConf.to_container(found)
    return dict(plain)
