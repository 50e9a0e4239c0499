"""A synthetic study folder: a plan and per-query scores, as they are published, without training anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimoer.schema import Declaration, Plan, write_record
from unimoer.schema.plan import ArmPlan, CollectionPlan, Criterion, SuitePlan
from unimoer.studies import interference, recovery
from unimoer.studies.planning import declaration_hash
from unimoer.studies.scores import Key, Scores
from unimoer.types import Task

DATASETS = ("attack", "hpo")
ALONE = {"emb_only": [Task.EMBEDDING], "rank_only": [Task.RERANKING]}
REFERENCES = {"bm25": 0.4, "random": 0.05, "untrained": 0.2}


def arm_plan(arm: str, **changes: Any) -> ArmPlan:
    content: dict[str, Any] = {"tasks": ALONE.get(arm, list(Task)), "adapter_parameters": 1000}
    return ArmPlan.model_validate({**content, "steps": {Task.EMBEDDING: 100, Task.RERANKING: 100}, **changes})


def write_study(
    folder: Path,
    levels: Mapping[str, Mapping[Task, float]],
    *,
    study: str = "kill-gate",
    seeds: Sequence[int] = (1, 2, 3),
    queries: int = 60,
    noise: float = 0.0,
    seed_noise: float = 0.0,
    arms: Mapping[str, ArmPlan] | None = None,
    steps: Sequence[int] = (),
    by_step: Callable[[str, Task, int | None], float] = lambda arm, task, step: 0.0,
) -> Path:
    """Write a study whose system `arm` scores `levels[arm][task]` on average over every collection.

    Scores are a level, a spread over queries that all systems share, and noise of their own; `by_step` is added at the
    steps of a curve.
    """
    generator = np.random.default_rng(0)
    scores = Scores()
    trained = dict(arms or {arm: arm_plan(arm) for arm in levels if arm not in REFERENCES})
    everything = {**{name: dict.fromkeys(Task, level) for name, level in REFERENCES.items()}, **levels}
    for arm, by_task in everything.items():
        rows = (0,) if arm in ("bm25", "random") else tuple(seeds)
        for step in [*(steps if arm in trained else ()), None]:
            shift = {seed: generator.normal(0, seed_noise) if arm in trained else 0.0 for seed in rows}
            for dataset in DATASETS:
                for task in trained[arm].tasks if arm in trained else Task:
                    own = generator.normal(0, noise if arm in trained else 0.0, (len(rows), queries))
                    # Exact on average over seeds and queries, not for each seed: that would be no seed noise at all.
                    values = by_task[task] + np.linspace(-0.1, 0.1, queries) + (own - own.mean())
                    if arm in trained:
                        values = values + by_step(arm, task, step)
                    for seed, row in zip(rows, values, strict=True):
                        found = {f"q{n:03d}": {"ndcg@10": float(v)} for n, v in enumerate(row + shift[seed])}
                        scores.add(Key("test", "", arm, seed, step, dataset, task), found, f"{arm}-s{seed}")
    others = [arm for arm in trained if arm != "joint_single" and set(trained[arm].tasks) == set(Task)]
    collection = CollectionPlan(source="x", split="test", documents=10, queries=queries, fingerprint="f")
    declared = Declaration(
        study=study,
        criterion=Criterion(),
        budget="per_task",
        seeds=list(seeds),
        arms={"": trained},
        families=interference.families(DATASETS) | recovery.families(others, DATASETS),
        training={},
        domains={},
        suite="test",
        suites={"test": SuitePlan(collections=dict.fromkeys(DATASETS, collection), first_stage="bm25", depth=20)},
        checkpoints=list(steps),
    )
    plan = Plan(
        name="synthetic",
        commands=["unimoer run kill-gate"],
        declared=declared,
        frozen=declaration_hash(declared),
        time="2026-01-01T00:00:00+00:00",
        runs=[],
    )
    folder.mkdir(parents=True)
    write_record(folder / "plan.json", plan)
    scores.write(folder, "ndcg@10")
    return folder


def losing(embedding: float, reranking: float, level: float = 0.5) -> dict[str, dict[Task, float]]:
    """Specialists at `level`, the shared LoRA below them by the given percentages."""
    return {
        "emb_only": {Task.EMBEDDING: level},
        "rank_only": {Task.RERANKING: level},
        "joint_single": {Task.EMBEDDING: level * (1 - embedding / 100), Task.RERANKING: level * (1 - reranking / 100)},
    }


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
