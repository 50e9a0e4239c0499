"""The plan of an experiment: which runs, in which folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from unimoer.config import SHARED, ExperimentConfig
from unimoer.data.prepare import PreparedDomain
from unimoer.errors import UserError
from unimoer.experiments.arms import arm_settings, count_parameters
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
    mode: TrainingMode | None = None
    """What to train; None for a reference."""


def plan_runs(config: ExperimentConfig) -> list[PlannedRun]:
    """References first (they cost minutes and show that the path works), then seed by seed, specialists before joint.

    An untrained adapter changes nothing, so the untrained embedding is the same for every seed and runs once; a
    learned score head starts at random, so the untrained reranker runs once a seed.
    """
    references = [plan_run(config, BM25, 0, tuple(Task))]
    for number, seed in enumerate(config.seeds):
        if number == 0 or config.model.reranking.is_learned:
            references.append(plan_run(config, UNTRAINED, seed, tuple(Task) if number == 0 else (Task.RERANKING,)))
    return references + [plan_arm(config, arm, seed) for seed in config.seeds for arm in config.arms]


def plan_run(
    config: ExperimentConfig, arm: str, seed: int, tasks: tuple[Task, ...], mode: TrainingMode | None = None
) -> PlannedRun:
    """One run, in the folder that its arm, seed and configuration name."""
    return PlannedRun(arm, seed, f"{arm}-s{seed}-{config.run_hash(arm, seed)}", tasks, mode)


def plan_arm(config: ExperimentConfig, arm: str, seed: int) -> PlannedRun:
    """The run of one arm, evaluated on the tasks that it trains."""
    mode = config.arm(arm).mode
    return plan_run(config, arm, seed, mode.tasks, mode)


def describe_arms(config: ExperimentConfig) -> dict[str, Any]:
    """What each arm is: mode, router, ranks of its experts, trainable adapter and router parameters, steps.

    Raises:
        UserError: no ranks give an arm the size of the others.
    """
    found: dict[str, Any] = {}
    for name in config.arms:
        settings, model = arm_settings(config, name)
        router = model.adapter.router
        mode = config.arm(name).mode
        found[name] = {
            "mode": mode.value,
            "router": None if router is None else router.type,
            "granularity": getattr(router, "granularity", None),
            "task_aware": getattr(router, "task_aware", False),
            "task_prior": getattr(router, "task_prior", 0.0),
            "rank_wise": model.adapter.rank_wise,
            "experts": model.adapter.experts or {SHARED: model.adapter.rank},
            "gradients": settings.training.gradients.type,
            **count_parameters(model),
            "steps": {task.value: settings.steps(mode, task) for task in mode.tasks},
        }
    return found


def check_verdict(config: ExperimentConfig) -> None:
    """Raises: UserError when the arms that the verdict compares are not all there."""
    needed = [mode.value for mode in (TrainingMode.EMB_ONLY, TrainingMode.RANK_ONLY, TrainingMode.JOINT_SINGLE)]
    missing = [name for name in needed if name not in config.arms]
    if missing:
        raise UserError(
            f"arms: the verdict compares {', '.join(needed)}, and '{missing[0]}' is not among them; add it, or train "
            "single arms with `unimoer train`"
        )


def arms_table(arms: Mapping[str, Any]) -> Table:
    """What `describe_arms` found, for the terminal."""
    table = Table(title="arms: trainable parameters, and how many more than joint_single", title_justify="left")
    table.add_column("arm", no_wrap=True)
    table.add_column("mode, router")
    table.add_column("rank of each expert")
    for column in ("adapter", "routers", "more"):
        table.add_column(column, justify="right", no_wrap=True)
    shared = arms.get(TrainingMode.JOINT_SINGLE.value)
    for name, arm in arms.items():
        sizes = [arm["adapter_parameters"], arm["router_parameters"]]
        more = sum(sizes) / (shared["adapter_parameters"] + shared["router_parameters"]) - 1 if shared else None
        method = arm["gradients"] if arm["gradients"] != "sum" else None
        told = "told the task" if arm["task_aware"] else None
        told = f"{told}, prior {arm['task_prior']:g}" if arm["task_prior"] else told
        what = ", ".join(filter(None, (arm["mode"], arm["router"], arm["granularity"], told, method)))
        ranks = ", ".join(f"{expert} {_span(rank)}" for expert, rank in arm["experts"].items())
        cells = [name, what, ranks, *(f"{size:,}" for size in sizes)]
        table.add_row(*cells, "" if more is None else f"{more:+.1%}")
    return table


def _span(rank: int | Sequence[int]) -> str:
    """`8`, or `7-8` for ranks that differ by layer."""
    if isinstance(rank, int):
        return str(rank)
    return str(min(rank)) if min(rank) == max(rank) else f"{min(rank)}-{max(rank)}"


def describe(
    config: ExperimentConfig,
    runs: list[PlannedRun],
    domains: Mapping[str, PreparedDomain],
    arms: Mapping[str, Any],
    *,
    command: str,
) -> dict[str, Any]:
    """The content of `plan.json`; `arms` as `describe_arms` gives them."""
    return {
        "name": config.name,
        "command": command,
        "seeds": list(config.seeds),
        "arms": list(config.arms),
        "budget": config.budget,
        "criterion": {
            "metric": config.criterion.metric,
            "pass": config.criterion.pass_at,
            "fail": config.criterion.fail_below,
        },
        "bootstrap": config.evaluation.bootstrap,
        "rerank_depth": config.evaluation.rerank_depth,
        "arm_settings": dict(arms),
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
