"""The plan of an experiment: which runs, in which folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unimoer.config import ExperimentConfig
from unimoer.data.prepare import PreparedDomain
from unimoer.types import Task, TrainingMode

UNTRAINED = "untrained"
BM25 = "bm25"


@dataclass(frozen=True)
class PlannedRun:
    """One line of the plan. References (`untrained`, `bm25`) are evaluated but not trained."""

    arm: str
    seed: int
    folder: str
    tasks: tuple[Task, ...]
    """What it is evaluated on."""

    @property
    def mode(self) -> TrainingMode | None:
        """What to train; None for a reference."""
        return None if self.arm in (UNTRAINED, BM25) else TrainingMode(self.arm)


def plan_runs(config: ExperimentConfig) -> list[PlannedRun]:
    """References first (they cost minutes and show that the path works), then seed by seed, specialists before joint.

    An untrained adapter changes nothing, so the untrained embedding is the same for every seed and runs once; a
    learned score head starts at random, so the untrained reranker runs once a seed.
    """
    references = [plan_run(config, BM25, 0, tuple(Task))]
    for number, seed in enumerate(config.seeds):
        seeded = config.model.reranking.head == "linear"
        if number == 0 or seeded:
            references.append(plan_run(config, UNTRAINED, seed, tuple(Task) if number == 0 else (Task.RERANKING,)))
    return references + [plan_run(config, arm.value, seed, arm.tasks) for seed in config.seeds for arm in config.arms]


def plan_run(config: ExperimentConfig, arm: str, seed: int, tasks: tuple[Task, ...]) -> PlannedRun:
    """One run, in the folder that its arm, seed and configuration name."""
    return PlannedRun(arm, seed, f"{arm}-s{seed}-{config.run_hash(arm, seed)}", tasks)


def describe(
    config: ExperimentConfig, runs: list[PlannedRun], domains: Mapping[str, PreparedDomain], *, command: str
) -> dict[str, Any]:
    """The content of `plan.json`."""
    return {
        "name": config.name,
        "command": command,
        "seeds": list(config.seeds),
        "arms": [arm.value for arm in config.arms],
        "budget": config.budget,
        "criterion": {
            "metric": config.criterion.metric,
            "pass": config.criterion.pass_at,
            "fail": config.criterion.fail_below,
        },
        "bootstrap": config.evaluation.bootstrap,
        "rerank_depth": config.evaluation.rerank_depth,
        "steps": {arm.value: {task.value: config.steps(arm, task) for task in arm.tasks} for arm in config.arms},
        "datasets": {
            name: {
                "source": domain.config.source,
                "documents": len(domain.dataset.corpus),
                "train_queries": len(domain.examples),
                "queries": len(domain.test),
                "overlap": overlap(domain),
                "notes": domain.dataset.notes,
                "sha256": domain.dataset.fingerprint,
            }
            for name, domain in domains.items()
            if domain.config.evaluate
        },
        "runs": [{"arm": run.arm, "seed": run.seed, "folder": run.folder} for run in runs],
    }


def overlap(domain: PreparedDomain) -> str:
    """Whether the documents that test queries ask for were positives in training, counted rather than declared."""
    trained = {key for example in domain.examples for key in example.positive_ids}
    asked = {key for grades in domain.test.values() for key, grade in grades.items() if grade > 0}
    share = len(asked & trained) / len(asked) if asked else 0.0
    if not domain.examples:
        return "not trained on"
    if share == 0:
        return "test documents unseen in training"
    return f"{share:.0%} of the relevant test documents seen in training"
