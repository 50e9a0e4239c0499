"""What one run is, resolved: everything that decides its weights, and everything that decides its scores.

A specification is plain data: it can be pickled, sent to another process, and written to disk. Nothing is looked up
any more: an arm's ranks are solved, its overrides applied, the precision and the kind of device settled.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from unimoer.config.base import Strict, changed
from unimoer.config.data import DataConfig
from unimoer.config.evaluation import SuiteConfig
from unimoer.config.model import ModelConfig
from unimoer.config.training import TrainingConfig
from unimoer.types import Schedule, Task

KEY_VERSION = 4
"""Raise it when the same settings begin to mean something else, a changed default included."""

_NO_WEIGHTS = (("checkpoint_every",), ("routing_every",), ("probe",))
"""Training settings that change no weight: how often a run is saved and watched."""


class TrainSpec(Strict):
    """All that decides the weights of one run; its `key` names the run."""

    arm: str
    seed: int
    tasks: tuple[Task, ...]
    schedule: Schedule
    steps: dict[Task, int]
    """Optimizer steps in which each task takes part."""
    model: ModelConfig
    """With the arm's own adapter."""
    base: str
    """Identity of the frozen base's content; see `model.backbone.base_identity`."""
    data: DataConfig
    fingerprints: dict[str, str]
    """Content of every domain, by name: a configuration says where data lie, not what they are."""
    training: TrainingConfig
    """With the arm's own settings."""
    dtype: Literal["float32", "bfloat16"]
    """Of the frozen base, resolved."""
    device: Literal["cpu", "cuda", "mps"]
    """The kind of device: kernels of another kind round differently."""

    @property
    def is_joint(self) -> bool:
        return len(self.tasks) > 1

    @property
    def key(self) -> str:
        """Eight hex digits over everything that can change a weight; settings at their defaults are left out, so a
        setting that is added later leaves finished runs what they are."""
        content = {name: changed(getattr(self, name)) for name in ("model", "data", "training")}
        for path in _NO_WEIGHTS:
            content["training"].pop(path[0], None)
        if self.schedule is not Schedule.STAGED:
            content["training"].pop("staged", None)
        # The resolved ones stand beside them.
        content["model"].pop("dtype", None)
        rest = {
            "arm": self.arm,
            "seed": self.seed,
            "tasks": [task.value for task in self.tasks],
            "schedule": self.schedule.value,
            "steps": {task.value: count for task, count in self.steps.items()},
            "base": self.base,
            "fingerprints": self.fingerprints,
            "dtype": self.dtype,
            "device": self.device,
        }
        return digest({**content, **rest})


class SuiteSpec(Strict):
    """All that decides the scores of one run on one suite, beside its weights."""

    name: str
    suite: SuiteConfig
    fingerprints: dict[str, str]
    """Content of every collection, by name."""
    candidates: str = ""
    """Content of the run files of the first stage; empty where candidates are computed."""
    tasks: tuple[Task, ...]

    def key(self, training_key: str, model: ModelConfig | None) -> str:
        """Eight hex digits; `model` is what is evaluated, None for a reference that needs none."""
        limits = None if model is None else [model.prompts.max_query_tokens, model.prompts.max_document_tokens]
        suite = changed(self.suite)
        # Whole searches are measured beside the rest, in files of their own.
        suite.pop("whole_search", None)
        content = {
            "run": training_key,
            "suite": suite,
            "data": self.fingerprints,
            "limits": limits,
        }
        # Only where there are any, so that scores of computed candidates keep their keys.
        return digest(content | ({"candidates": self.candidates} if self.candidates else {}))


class Resources(Strict):
    """What one run asks of an executor that places runs."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float | None = None


class RunSpec(Strict):
    """One run: what to train, if anything, and what to evaluate. `runs.execute` needs nothing else but a folder."""

    arm: str
    seed: int
    variant: str = ""
    """The point of the study that it belongs to, such as a depth; empty where there is only one."""
    train: TrainSpec | None = None
    """None for a reference, which is evaluated as it is."""
    model: ModelConfig | None = None
    """What a reference that needs a model evaluates: the untrained base, or a checkpoint."""
    identity: str = ""
    """What `model` does not say of itself: content of the base or of the weights, precision, kind of device."""
    suites: tuple[SuiteSpec, ...]
    checkpoints: tuple[int, ...] = ()
    """Steps of a task after which weights are kept and evaluated, beside the run's end."""
    device: str = "cpu"
    batch_tokens: int = 8192
    latency_requests: int = 0
    trackers: tuple[str, ...] = ()
    resources: Resources = Resources()

    @property
    def key(self) -> str:
        """The training key; of a reference, the key of what it evaluates."""
        if self.train is not None:
            return self.train.key
        content = {"arm": self.arm, "seed": self.seed, "model": None if self.model is None else changed(self.model)}
        return digest(content | ({"identity": self.identity} if self.identity else {}))

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return f"{self.arm}-s{self.seed}-{self.key}"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it is scored on by any suite."""
        return tuple(task for task in Task if any(task in suite.tasks for suite in self.suites))


def digest(content: Any) -> str:
    text = json.dumps({"version": KEY_VERSION, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
