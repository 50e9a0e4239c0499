"""Where runs happen. An executor is given specifications and folders, and returns when all are done.

A new one is a class with `run` and one line in `EXECUTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from unimoer.config import RunSpec
from unimoer.errors import UserError, did_you_mean
from unimoer.runs import Watch

Job = tuple[RunSpec, Path]
"""A run and its folder, which every worker must be able to write."""

TRIES = 4
"""Of one run: a machine that kills every worker would otherwise be tried for ever."""


class Executor(Protocol):
    workers: int
    """Runs at a time."""

    def run(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Bring every run to its end; `watch` is called in this process alone.

        Raises:
            UserError: a run failed for a reason that the user can mend; the others' results stay.
        """


def _local(workers: int) -> Executor:
    if workers > 1:
        from unimoer.executors.processes import ProcessExecutor

        return ProcessExecutor(workers)
    from unimoer.executors.local import LocalExecutor

    return LocalExecutor()


def _ray(workers: int) -> Executor:
    from unimoer.executors.ray import RayExecutor

    return RayExecutor(workers)


EXECUTORS: dict[str, Callable[[int], Executor]] = {"local": _local, "ray": _ray}


def build_executor(name: str, workers: int = 1) -> Executor:
    """Raises: UserError for an unknown name, or where the executor's package is not installed."""
    if name not in EXECUTORS:
        raise UserError(f"--executor {name}: unknown{did_you_mean(name, EXECUTORS)}")
    return EXECUTORS[name](workers)
