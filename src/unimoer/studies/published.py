"""Estimates made again in a published folder: what only runs can say stays as its files have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unimoer.schema import Decision, Results, read_record
from unimoer.schema.results import SystemScore, TaskScores
from unimoer.types import Task

_OF_RUNS = ("ceilings", "arms", "runs", "routing", "provenance")


def earlier_results(results: Results, file: Path) -> Results:
    """Results from `scores.json.gz` alone, with the rest from an earlier `results.json`, where there is one."""
    if not file.exists():
        return results
    earlier = read_record(Results, file)
    tables = {
        "scores": {name: _tables(found, earlier.scores.get(name, {})) for name, found in results.scores.items()},
        "other_suites": {
            name: _tables(found, earlier.other_suites.get(name, {})) for name, found in results.other_suites.items()
        },
    }
    return results.model_copy(update=tables | {part: getattr(earlier, part) for part in _OF_RUNS})


def earlier_decision(decision: Decision | None, file: Path) -> Decision | None:
    """A decision from scores alone, with the conflicts of gradients of an earlier one, where there is one."""
    if decision is None or not file.exists():
        return decision
    return decision.model_copy(update={"gradient_conflicts": read_record(Decision, file).gradient_conflicts})


def _tables(found: Mapping[Task, TaskScores], earlier: Mapping[Task, TaskScores]) -> dict[Task, TaskScores]:
    """With the metrics that the published scores do not hold."""
    none = TaskScores(macro={}, datasets={})
    return {
        task: TaskScores(
            macro=_metrics(scores.macro, earlier.get(task, none).macro),
            datasets={
                name: _metrics(systems, earlier.get(task, none).datasets.get(name, {}))
                for name, systems in scores.datasets.items()
            },
        )
        for task, scores in found.items()
    }


def _metrics(found: Mapping[str, SystemScore], earlier: Mapping[str, SystemScore]) -> dict[str, SystemScore]:
    return {
        system: score.model_copy(update={"metrics": {**earlier[system].metrics, **score.metrics}})
        if system in earlier
        else score
        for system, score in found.items()
    }
