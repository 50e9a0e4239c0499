"""Writes results.json and decision.json: all that tables, figures and the report need from an experiment folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimoer.errors import UserError
from unimoer.evaluation import statistics
from unimoer.evaluation.metrics import mean
from unimoer.evaluation.statistics import Sample
from unimoer.experiments.cells import bounds
from unimoer.experiments.costs import describe_costs
from unimoer.experiments.interference import Criterion, decide
from unimoer.experiments.recovery import recover
from unimoer.experiments.results import (
    BM25,
    JOINT,
    UNTRAINED,
    Experiment,
    RunFolder,
    read_experiment,
    read_log,
)
from unimoer.experiments.routing_summary import summarise_routing
from unimoer.files import write_json
from unimoer.types import Task

_PLAN_FIELDS = ("name", "tier", "budget", "command", "rerank_depth", "seeds", "arms", "criterion")
_SAME_FOR_ALL = ("git_commit", "git_dirty", "packages", "hardware")


def write_results(experiment_dir: Path) -> None:
    """Read an experiment's files and write `results.json` and `decision.json` into its folder, atomically.

    Both are deterministic functions of the files read; decision.json also holds no time, so an experiment that was
    killed and resumed ends in the same bytes as one that was not.

    Raises UserError where `read_experiment` or `decide` does, and for arms that reranked different candidates.
    """
    experiment = read_experiment(Path(experiment_dir))
    criterion = Criterion.from_plan(experiment.plan["criterion"])
    draws = int(experiment.plan.get("bootstrap") or statistics.DRAWS)
    decision = decide(experiment.scores, criterion, experiment.seeds, _conflicts(experiment), draws=draws)
    for key in ("name", "tier", "budget"):
        decision[key] = experiment.plan.get(key)
    write_json(experiment.folder / "results.json", summarise(experiment, criterion, draws))
    write_json(experiment.folder / "decision.json", decision)


def summarise(experiment: Experiment, criterion: Criterion, draws: int = statistics.DRAWS) -> dict[str, Any]:
    """The content of results.json: every arm's scores with intervals, references, ceilings, costs and provenance.

    Scores lie at `scores[task]["macro" or "datasets"][data set][arm]`, each with means of all metrics, their standard
    deviation over seeds, and the 95% interval of the criterion's metric over queries (and seeds, where there are some).
    `recovery` is None where no arm but `joint_single` serves both tasks; `routing` has the arms whose routers weigh
    their experts.
    """
    routing = {arm: summarise_routing(experiment.arm_runs(arm)) for arm in experiment.plan["arms"]}
    return {
        **{key: experiment.plan.get(key) for key in _PLAN_FIELDS},
        "datasets": _datasets(experiment),
        "scores": {str(task): _scores(experiment, task, criterion.metric) for task in Task},
        "ceilings": _ceilings(experiment, criterion.metric),
        "runs": [_run(run) for run in experiment.runs],
        "arm_details": describe_costs(experiment),
        "recovery": _recovery(experiment, criterion.metric, draws),
        "routing": {arm: found for arm, found in routing.items() if found is not None},
        "provenance": _provenance(experiment),
    }


def _scores(experiment: Experiment, task: Task, metric: str) -> dict[str, Any]:
    scores, seeds = experiment.scores, experiment.seeds
    names = scores.datasets(task)
    covered: dict[str, list[str]] = {}
    for arm in scores.arms(task):
        found = [name for name in names if any(key[0] == arm and key[2:] == (name, task) for key in scores.per_query)]
        if found:
            covered[arm] = found

    found_scores: dict[str, Any] = {"macro": {}, "datasets": {name: {} for name in names}}
    for arm, arm_names in covered.items():
        matrices = {name: scores.matrix(arm, task, name, metric, seeds) for name in arm_names}
        runs = [seed for seed in scores.seeds(arm, task) if seed in seeds or arm in (UNTRAINED, BM25)]
        by_seed = {name: {seed: mean(scores.per_query[arm, seed, name, task]) for seed in runs} for name in arm_names}
        for name in arm_names:
            found_scores["datasets"][name][arm] = _cell(by_seed[name], Sample.of(matrices, [name]))
        if arm_names == names:
            macro = {seed: _average([by_seed[name][seed] for name in names]) for seed in runs}
            found_scores["macro"][arm] = _cell(macro, Sample.of(matrices))
    return found_scores


def _cell(by_seed: Mapping[int, Mapping[str, float]], sample: Sample) -> dict[str, Any]:
    columns = {name: [values[name] for values in by_seed.values()] for name in next(iter(by_seed.values()))}
    return {
        "mean": {name: math.fsum(values) / len(values) for name, values in columns.items()},
        "std": {name: float(np.std(values, ddof=1)) if len(values) > 1 else None for name, values in columns.items()},
        "ci95": bounds(sample.interval()),
        "per_seed": {str(seed): dict(values) for seed, values in by_seed.items()},
        "queries": sum(scores.shape[1] for scores in sample.terms.values()),
    }


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _recovery(experiment: Experiment, metric: str, draws: int) -> dict[str, Any] | None:
    arms = experiment.joint_arms
    routers = {arm: settings.get("router") for arm, settings in experiment.arm_settings.items()}
    return recover(experiment.scores, arms, routers, metric, experiment.seeds, draws) if arms else None


def _ceilings(experiment: Experiment, metric: str) -> dict[str, Any]:
    """What the fixed candidate lists allow, by data set and on average; every arm must name the same."""
    found: dict[str, dict[str, float]] = {}
    where: dict[str, Path] = {}
    for key, evaluation in sorted(experiment.evaluations.items()):
        dataset, path = key[2], experiment.scores.files[key].with_name("metrics.json")
        if key[3] != Task.RERANKING or not evaluation.get("ceiling"):
            continue
        values = {name: float(value) for name, value in evaluation["ceiling"].items()}
        expected = found.setdefault(dataset, values)
        first = where.setdefault(dataset, path)
        if values.keys() != expected.keys() or any(abs(values[name] - expected[name]) > 1e-9 for name in values):
            raise UserError(
                f"{path} and {first} have different ceilings: the arms did not rerank the same candidate lists"
            )
    return {"datasets": found, "macro": _average(list(found.values())) if found else {}, "metric": metric}


def _datasets(experiment: Experiment) -> dict[str, dict[str, Any]]:
    names = sorted({name for task in Task for name in experiment.scores.datasets(task)})
    found = {name: dict(experiment.plan["datasets"].get(name, {})) for name in names}
    for key, evaluation in sorted(experiment.evaluations.items()):
        if key[2] in found:
            found[key[2]].setdefault("documents", evaluation.get("documents"))
            found[key[2]].setdefault("queries", len(experiment.scores.per_query[key]))
    return found


def _run(run: RunFolder) -> dict[str, Any]:
    costs = {key: value for key, value in run.status.items() if key not in ("state", "arm", "seed")}
    return {"arm": run.arm, "seed": run.seed, "folder": run.folder.name, **costs}


def _provenance(experiment: Experiment) -> dict[str, Any]:
    """Commit, packages and hardware of the runs; fields in which runs differ are listed under `differing`."""
    trained = [run for run in experiment.runs if run.env]
    found: dict[str, Any] = {"differing": {}}
    for key in _SAME_FOR_ALL:
        values = [run.env.get(key) for run in trained]
        found[key] = values[0] if values else None
        if any(value != values[0] for value in values):
            found["differing"][key] = {run.folder.name: run.env.get(key) for run in trained}
    found["data"] = {name: digest for run in trained for name, digest in dict(run.env.get("data", {})).items()}
    found["config_hash"] = {run.folder.name: run.env.get("config_hash") for run in trained}
    times = sorted(str(run.env["time"]) for run in trained if run.env.get("time"))
    found["first_run"], found["last_run"] = (times[0], times[-1]) if times else (None, None)
    return found


def _conflicts(experiment: Experiment) -> list[dict[str, Any]]:
    return [
        {**line, "seed": run.seed}
        for run in experiment.runs
        if run.arm == JOINT
        for line in read_log(run.folder / "gradient_conflicts.jsonl", ("step", "layer"))
    ]
