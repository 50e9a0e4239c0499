"""Reads a finished experiment folder: the plan, the run folders, and every per-query score.

Only files pass between a run and its analysis, so whatever is wrong with them is said here, once, with the file's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unimoer import files
from unimoer.errors import UserError
from unimoer.evaluation.metrics import PerQuery
from unimoer.evaluation.statistics import Array
from unimoer.types import Task, TrainingMode

SPECIALIST = {Task.EMBEDDING: TrainingMode.EMB_ONLY.value, Task.RERANKING: TrainingMode.RANK_ONLY.value}
JOINT = TrainingMode.JOINT_SINGLE.value
UNTRAINED = "untrained"
"""The model at step 0: what a specialist has to beat before its losses mean anything."""
BM25 = "bm25"

Key = tuple[str, int, str, Task]
"""Arm, seed, data set, task."""


@dataclass(frozen=True)
class RunFolder:
    arm: str
    seed: int
    folder: Path
    status: Mapping[str, Any]
    env: Mapping[str, Any]
    """Empty for a reference run, which trains nothing."""


@dataclass
class Scores:
    """Per-query scores by arm, seed, data set and task, with the file each came from."""

    per_query: dict[Key, PerQuery] = field(default_factory=dict)
    files: dict[Key, Path] = field(default_factory=dict)

    def arms(self, task: Task) -> list[str]:
        """Arms with any score on this task: specialist, joint and the references first, then by name."""
        first = (SPECIALIST[task], JOINT, UNTRAINED, BM25)
        found = {arm for arm, _, _, found_task in self.per_query if found_task == task}
        return [arm for arm in first if arm in found] + sorted(found.difference(first))

    def seeds(self, arm: str, task: Task) -> list[int]:
        return sorted({seed for name, seed, _, found in self.per_query if (name, found) == (arm, task)})

    def datasets(self, task: Task) -> list[str]:
        """Data sets on which this task's specialist was scored, by name."""
        return sorted({name for arm, _, name, found in self.per_query if (arm, found) == (SPECIALIST[task], task)})

    def query_ids(self, task: Task, dataset: str) -> list[str]:
        """The queries of a data set, sorted; the same for every arm (`check_paired`)."""
        return sorted(next(found for key, found in self.per_query.items() if key[2:] == (dataset, task)))

    def matrix(self, arm: str, task: Task, dataset: str, metric: str, seeds: Sequence[int]) -> Array:
        """Scores `[seeds, queries]`, queries in sorted order. A reference that ran once stands in for every seed.

        Raises UserError where a run, a query's score or a metric is missing.
        """
        queries = self.query_ids(task, dataset)
        available = [seed for name, seed, data, found in self.per_query if (name, data, found) == (arm, dataset, task)]
        rows = []
        for seed in seeds:
            source = available[0] if len(available) == 1 and arm in (UNTRAINED, BM25) else seed
            if source not in available:
                raise UserError(f"no {task} scores of arm '{arm}', seed {seed}, on '{dataset}': finish the experiment")
            found = self.per_query[arm, source, dataset, task]
            try:
                rows.append([found[query][metric] for query in queries])
            except KeyError as error:
                raise UserError(f"{self.files[arm, source, dataset, task]}: no {error} where one is needed") from None
        return np.array(rows, np.float64)

    def check_paired(self) -> None:
        """Every arm and seed must have scored exactly the same queries, or no comparison is paired.

        Raises UserError that names two files that differ and how.
        """
        reference: dict[tuple[str, Task], Key] = {}
        for key, found in sorted(self.per_query.items()):
            first = reference.setdefault((key[2], key[3]), key)
            expected = self.per_query[first]
            if found.keys() != expected.keys():
                example = min(found.keys() ^ expected.keys())
                raise UserError(
                    f"{self.files[key]} and {self.files[first]} must have the same queries; "
                    f"{len(found.keys() ^ expected.keys())} differ, '{example}' first"
                )


@dataclass(frozen=True)
class Experiment:
    folder: Path
    plan: Mapping[str, Any]
    runs: Sequence[RunFolder]
    scores: Scores
    evaluations: Mapping[Key, Mapping[str, Any]]
    """The `metrics.json` beside each per-query file: sizes, and the ceiling of a candidate list."""

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.plan["seeds"]]

    @property
    def arm_settings(self) -> Mapping[str, Mapping[str, Any]]:
        """What each arm is, by name; empty for plans from before arms had settings."""
        found: Mapping[str, Mapping[str, Any]] = self.plan.get("arm_settings") or {}
        return found

    @property
    def joint_arms(self) -> list[str]:
        """Arms beside `joint_single` that serve both tasks, in the plan's order."""
        scored = {(arm, task) for arm, _, _, task in self.scores.per_query}
        usual = {*SPECIALIST.values(), JOINT}
        return [arm for arm in self.plan["arms"] if arm not in usual and all((arm, task) in scored for task in Task)]

    def arm_runs(self, arm: str) -> list[RunFolder]:
        return [run for run in self.runs if run.arm == arm]


def read_experiment(folder: Path) -> Experiment:
    """Read everything that the decision and the report need. Nothing is recomputed and nothing is guessed.

    Raises UserError in one line that names the file: a missing or broken one, a run that is not done, arms with
    different queries, runs on different data.
    """
    plan_file = folder / "plan.json"
    plan = read_json(plan_file)
    for key in ("name", "seeds", "arms", "criterion", "runs", "datasets"):
        if key not in plan:
            raise UserError(f"{plan_file}: '{key}' is missing")
    runs = [_read_run(folder, entry, plan_file) for entry in plan["runs"]]
    scores = Scores()
    evaluations: dict[Key, Mapping[str, Any]] = {}
    for run in runs:
        for dataset, task, path in _evaluations(run):
            source: Key = (run.arm, run.seed, dataset, task)
            scores.files[source] = path
            scores.per_query[source] = _read_per_query(path)
            evaluations[source] = read_json(path.with_name("metrics.json"))
    scores.check_paired()
    _check_same_data(runs)
    return Experiment(folder, plan, runs, scores, evaluations)


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError in one line for a missing or broken one."""
    if not path.is_file():
        raise UserError(f"{path}: missing; finish the experiment with the command that started it")
    return files.read_json(path)


def read_log(path: Path, identity: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of a JSONL log, one for each value of the `identity` fields, in the order of their first appearance.

    A run that was killed and resumed may have logged a step twice, or left half a line: the later line counts and the
    half is dropped, so that the result is that of an uninterrupted run. A log that does not exist is empty.
    """
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    if not path.exists():
        return []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
            lines[tuple(line[name] for name in identity)] = line
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return list(lines.values())


def _read_run(experiment: Path, entry: Mapping[str, Any], plan_file: Path) -> RunFolder:
    try:
        arm, seed, name = str(entry["arm"]), int(entry["seed"]), str(entry["folder"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{plan_file}: every entry of 'runs' needs arm, seed and folder; found {entry!r}") from None
    # The folder's name, or its path from the experiment: both identify it.
    folder = experiment / "runs" / Path(name).name
    status = read_json(folder / "status.json")
    if status.get("state") != "done":
        raise UserError(
            f"{folder / 'status.json'}: the run is '{status.get('state')}', not done; "
            "finish it with the command that started the experiment"
        )
    env = read_json(folder / "env.json") if arm not in (UNTRAINED, BM25) else {}
    return RunFolder(arm, seed, folder, status, env)


def _evaluations(run: RunFolder) -> Iterator[tuple[str, Task, Path]]:
    """(data set, task, per-query file) of every evaluation in a run folder."""
    found = sorted((run.folder / "eval").glob("*/*/per_query.jsonl"))
    if not found:
        raise UserError(f"{run.folder / 'eval'}: no per_query.jsonl of any data set")
    for path in found:
        if path.parent.name in set(Task):
            yield path.parent.parent.name, Task(path.parent.name), path


def _read_per_query(path: Path) -> PerQuery:
    found: PerQuery = {}
    # Not splitlines: it would also split at the line separators that a query id may contain.
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            query = str(line.pop("query_id"))
            values = {metric: float(value) for metric, value in line.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}:{number}: expected a JSON object of query_id and numbers") from None
        if query in found:
            raise UserError(f"{path}:{number}: query '{query}' is listed twice")
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(f"{path}:{number}: query '{query}' has a score that is not finite")
        found[query] = values
    if not found:
        raise UserError(f"{path}: no queries")
    return found


def _check_same_data(runs: Sequence[RunFolder]) -> None:
    first: dict[str, tuple[str, Path]] = {}
    for run in runs:
        for dataset, digest in dict(run.env.get("data", {})).items():
            expected, where = first.setdefault(dataset, (digest, run.folder))
            if digest != expected:
                raise UserError(
                    f"{run.folder / 'env.json'} and {where / 'env.json'} name different data for '{dataset}': "
                    "delete the older run and repeat the command"
                )
