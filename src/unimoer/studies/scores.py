"""Per-query scores of a study: read from its runs, kept in one compressed file, and laid out for statistics."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unimoer.config import BM25, JOINT, RANDOM, SPECIALIST, UNTRAINED, is_reference
from unimoer.errors import UserError
from unimoer.evaluation.metrics import PerQuery
from unimoer.evaluation.statistics import Array
from unimoer.files import write_bytes
from unimoer.types import Task

FILE = "scores.json.gz"
_DIGITS = 6


class Key(NamedTuple):
    """Where one system's scores on one collection come from."""

    suite: str
    variant: str
    arm: str
    seed: int
    step: int | None
    """None for the end of training."""
    dataset: str
    task: Task


@dataclass
class Scores:
    """Per-query scores by system, seed, collection and task; references without a variant stand in every one."""

    per_query: dict[Key, PerQuery] = field(default_factory=dict)
    origin: dict[Key, str] = field(default_factory=dict)
    """For messages: the file."""

    def add(self, key: Key, scores: PerQuery, origin: str) -> None:
        self.per_query[key], self.origin[key] = scores, origin

    def of(self, suite: str, variant: str, step: int | None = None) -> Table:
        """The scores of one suite, variant and step; references, which have no steps, are in all of them."""
        chosen = {
            key: scores
            for key, scores in self.per_query.items()
            if key.suite == suite and key.variant in (variant, "") and (key.step == step or is_reference(key.arm))
        }
        return Table({(k.arm, k.seed, k.dataset, k.task): v for k, v in chosen.items()}, chosen, self.origin)

    def suites(self) -> list[str]:
        return list(dict.fromkeys(key.suite for key in self.per_query))

    def check_paired(self) -> None:
        """Every arm and seed must have scored exactly the same queries, or no comparison is paired.

        Raises:
            UserError: two differ; names both files and how.
        """
        reference: dict[tuple[str, str, Task], Key] = {}
        for key, found in sorted(self.per_query.items(), key=lambda item: str(item[0])):
            first = reference.setdefault((key.suite, key.dataset, key.task), key)
            expected = self.per_query[first]
            if found.keys() != expected.keys():
                differing = found.keys() ^ expected.keys()
                raise UserError(
                    f"{self.origin[key]} and {self.origin[first]} must have the same queries; "
                    f"{len(differing)} differ, '{min(differing)}' first"
                )

    def write(self, folder: Path, metric: str) -> None:
        """All scores of one metric as `scores.json.gz`: what anybody needs to compute an interval again."""
        datasets: dict[str, Any] = {}
        for key, found in sorted(self.per_query.items(), key=lambda item: str(item[0])):
            group = datasets.setdefault(f"{key.suite}/{key.dataset}/{key.task}", {"queries": sorted(found), "runs": []})
            values = [round(found[query][metric], _DIGITS) for query in group["queries"]]
            named = {"variant": key.variant, "arm": key.arm, "seed": key.seed, "step": key.step}
            group["runs"].append({**named, "scores": values})
        text = json.dumps({"metric": metric, "collections": datasets}, sort_keys=True, allow_nan=False)
        # Without a time, the same scores give the same bytes.
        write_bytes(folder / FILE, gzip.compress(text.encode(), mtime=0))

    @classmethod
    def read(cls, folder: Path) -> Scores:
        """Raises: UserError when the file is missing or broken."""
        path = folder / FILE
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            scores = cls()
            for name, group in content["collections"].items():
                suite, dataset, task = name.split("/")
                for run in group["runs"]:
                    key = Key(suite, run["variant"], run["arm"], run["seed"], run["step"], dataset, Task(task))
                    pairs = zip(group["queries"], run["scores"], strict=True)
                    scores.add(key, {query: {content["metric"]: value} for query, value in pairs}, str(path))
        except FileNotFoundError:
            raise UserError(f"{path}: missing, and there are no runs beside it to read scores from") from None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a file of scores: {type(error).__name__}: {error}") from None
        return scores


@dataclass
class Table:
    """The scores of one suite, variant and step."""

    per_query: Mapping[tuple[str, int, str, Task], PerQuery]
    _keys: Mapping[Key, PerQuery]
    _origin: Mapping[Key, str]

    def systems(self, task: Task) -> list[str]:
        """Systems with any score on a task: references first, then the specialist, the shared LoRA, the rest."""
        first = (RANDOM, BM25, UNTRAINED, SPECIALIST[task], JOINT)
        found = {arm for arm, _, _, found_task in self.per_query if found_task == task}
        return [arm for arm in first if arm in found] + sorted(found.difference(first))

    def seeds(self, arm: str, task: Task) -> list[int]:
        return sorted({seed for name, seed, _, found in self.per_query if (name, found) == (arm, task)})

    def datasets(self, task: Task) -> list[str]:
        """Collections that BM25 was scored on, which is all of them."""
        return sorted({name for arm, _, name, found in self.per_query if (arm, found) == (BM25, task)})

    def covers(self, arm: str, task: Task, seeds: Sequence[int]) -> bool:
        """Whether a system has scores of every seed on every collection."""
        return all(self._source(arm, task, name, seed) is not None for name in self.datasets(task) for seed in seeds)

    def matrix(self, arm: str, task: Task, dataset: str, metric: str, seeds: Sequence[int]) -> Array:
        """Scores `[seeds, queries]`, queries in sorted order. A reference that ran once stands in for every seed.

        Raises:
            UserError: a run, a query's score or a metric is missing.
        """
        queries = sorted(next(v for k, v in self.per_query.items() if k[2:] == (dataset, task)))
        rows = []
        for seed in seeds:
            source = self._source(arm, task, dataset, seed)
            if source is None:
                raise UserError(f"no {task} scores of '{arm}', seed {seed}, on '{dataset}': finish the study")
            found = self.per_query[source]
            try:
                rows.append([found[query][metric] for query in queries])
            except KeyError as error:
                raise UserError(f"scores of '{arm}', seed {seed}, on '{dataset}': no {error}") from None
        return np.array(rows, np.float64)

    def matrices(self, arm: str, task: Task, metric: str, seeds: Sequence[int]) -> dict[str, Array]:
        """`matrix` of every collection."""
        return {name: self.matrix(arm, task, name, metric, seeds) for name in self.datasets(task)}

    def _source(self, arm: str, task: Task, dataset: str, seed: int) -> tuple[str, int, str, Task] | None:
        wanted = (arm, seed, dataset, task)
        if wanted in self.per_query:
            return wanted
        if is_reference(arm):
            stands_in = [key for key in self.per_query if (key[0], key[2], key[3]) == (arm, dataset, task)]
            return stands_in[0] if len(stands_in) == 1 else None
        return None


def read_per_query(path: Path) -> PerQuery:
    """`per_query.jsonl` of one evaluation.

    Raises:
        UserError: a line is broken, a query stands twice, or a score is not finite.
    """
    found: PerQuery = {}
    for number, line in _json_lines(path):
        try:
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


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; repeat the command that started the study") from None
    # Not splitlines: it would also split at the line separators that a query id may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError:
                raise UserError(f"{path}:{number}: expected a JSON object of query_id and numbers") from None
