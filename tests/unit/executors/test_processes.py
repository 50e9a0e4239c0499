"""Runs in processes of their own: they end as in one process, lost workers and failing runs included."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import RunSpec
from unimoer.errors import UserError
from unimoer.executors import build_executor, processes
from unimoer.executors.local import LocalExecutor
from unimoer.executors.processes import ProcessExecutor
from unimoer.executors.progress import Clock
from unimoer.runs import Event, ignore, is_done
from unimoer.studies.planning import single_run

Make = Callable[..., dict[str, Any]]


def job(experiment: Make, folder: Path, seed: int, **changes: Any) -> tuple[RunSpec, Path]:
    config = experiment(arms=["rank_only"], seeds=[seed], training__reranking__steps=2, **changes)
    spec = single_run(tiny.parsed(config), tiny.CPU)
    return spec, folder / spec.folder


def scores(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("per_query.jsonl"))}


def test_two_workers_end_as_one_process_also_when_one_is_killed(experiment: Make, tmp_path: Path) -> None:
    alone = [job(experiment, tmp_path / "alone", seed) for seed in (1, 2, 3)]
    LocalExecutor().run(alone, ignore)
    jobs = [job(experiment, tmp_path / "together", seed) for seed in (1, 2, 3)]
    events: list[Event] = []

    def watch(event: Event) -> None:
        if event.detail.startswith("step") and not any(one.detail.startswith("step") for one in events):
            os.kill(min(child.pid or 0 for child in multiprocessing.active_children()), signal.SIGKILL)
        events.append(event)

    executor = build_executor("local", 2)
    assert isinstance(executor, ProcessExecutor) and executor.workers == 2
    executor.run(jobs, watch)
    assert all(is_done(folder, spec) for spec, folder in jobs)
    assert sum("its worker was lost; another goes on" in event.text for event in events) == 1
    assert scores(tmp_path / "alone") == scores(tmp_path / "together") != {}
    assert not multiprocessing.active_children()


def test_a_run_that_fails_lets_the_one_beside_it_end_and_no_other_begin(experiment: Make, tmp_path: Path) -> None:
    diverging = job(experiment, tmp_path, 2, training__optimizer={"lr": 1e30, "warmup_ratio": 0.0})
    jobs = [job(experiment, tmp_path, 1), diverging, job(experiment, tmp_path, 3), job(experiment, tmp_path, 4)]
    with pytest.raises(UserError, match=r"training\.optimizer\.lr"):
        ProcessExecutor(2).run(jobs, ignore)
    assert is_done(jobs[0][1], jobs[0][0])
    assert not is_done(diverging[1], diverging[0]) and not jobs[3][1].exists()


def test_a_run_that_loses_every_worker_is_given_up(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TRIES", 2)

    def kill(event: Event) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(UserError, match="its worker was lost 2 times, the last with exit code -9"):
        ProcessExecutor(1).run([job(experiment, tmp_path, 1)], kill)


def test_what_is_left_is_shared_by_the_workers() -> None:
    alone, shared = Clock({"train embedding": 10}), Clock({"train embedding": 10}, workers=2)
    for clock in (alone, shared):
        clock.spent("train embedding", 2, 4.0)
    assert alone.remaining() == pytest.approx(16.0)
    assert shared.remaining() == pytest.approx(8.0)
