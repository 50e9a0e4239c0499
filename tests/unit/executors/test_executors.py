"""Where runs happen: executors by name, and what goes wrong before the first run, in one line."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import RunSpec
from unimoer.errors import UserError
from unimoer.executors import EXECUTORS, build_executor
from unimoer.executors.local import LocalExecutor
from unimoer.executors.ray import RayExecutor
from unimoer.runs import Event, ignore, is_done
from unimoer.studies.planning import single_run

Make = Callable[..., dict[str, Any]]


def job(experiment: Make, folder: Path, seed: int = 1, **changes: Any) -> tuple[RunSpec, Path]:
    steps = {"training__reranking__steps": 1}
    spec = single_run(tiny.parsed(experiment(arms=["rank_only"], seeds=[seed], **steps, **changes)), tiny.CPU)
    return spec, folder / spec.folder


def test_executors_by_name() -> None:
    assert list(EXECUTORS) == ["local", "ray"]
    assert isinstance(build_executor("local"), LocalExecutor)
    with pytest.raises(UserError, match="--executor rai: unknown; did you mean 'ray'"):
        build_executor("rai")


def test_the_runs_of_this_process_come_one_after_the_other(experiment: Make, tmp_path: Path) -> None:
    jobs = [job(experiment, tmp_path, seed) for seed in (1, 2)]
    events: list[Event] = []
    LocalExecutor().run(jobs, events.append)
    assert all(is_done(folder, spec) for spec, folder in jobs)
    order = list(dict.fromkeys(event.text.partition(":")[0] for event in events if event.text))
    assert order == ["rank_only seed 1", "rank_only seed 2"]


def test_a_run_that_fails_stops_the_rest_and_keeps_what_is_done(experiment: Make, tmp_path: Path) -> None:
    diverging = job(experiment, tmp_path, 2, training__optimizer={"lr": 1e30, "warmup_ratio": 0.0})
    jobs = [job(experiment, tmp_path, 1), diverging, job(experiment, tmp_path, 3)]
    with pytest.raises(UserError):
        LocalExecutor().run(jobs, ignore)
    assert [is_done(folder, spec) for spec, folder in jobs] == [True, False, False]
    assert not jobs[2][1].exists()


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is how Python itself marks a module that must not be imported.
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as caught:
        build_executor("ray", 2)
    assert str(caught.value) == "--executor ray: Ray is not installed; pip install 'unimoer[cluster]'"


class _Unreachable:
    """What of Ray is used until there is a cluster."""

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def init(**options: Any) -> None:
        raise ConnectionError(f"could not find a cluster\n at {options.get('address')}: " + "reasons " * 100)


def test_where_nothing_is_to_do_no_cluster_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a finished study is asked for again."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a cluster was started"))
    build_executor("ray", 2).run([], lambda event: None)


def test_a_cluster_that_is_not_there_is_one_line(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Ray says is cut short, and nothing is written."""
    monkeypatch.setitem(sys.modules, "ray", _Unreachable)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    executor = build_executor("ray", 2)
    assert isinstance(executor, RayExecutor)
    with pytest.raises(UserError) as caught:
        executor.run([job(experiment, tmp_path)], ignore)
    line = str(caught.value)
    assert line.startswith("--executor ray: no cluster at auto: could not find a cluster at auto: reasons")
    assert line.endswith("; check RAY_ADDRESS")
    assert "\n" not in line and len(line) < 320
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_a_cluster_that_does_not_answer_is_not_waited_for(
    address: str, experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would try for minutes, so it is not asked."""

    def refuse(place: tuple[str, int], timeout: float) -> None:
        assert place[0] in ("127.0.0.1", "::1") and place[1] == 1 and timeout <= 10
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setitem(sys.modules, "ray", _Unreachable)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        build_executor("ray", 2).run([job(experiment, tmp_path)], ignore)
    assert "Connection refused" in str(caught.value)
    assert str(caught.value).startswith(f"--executor ray: no cluster at {address}: ")
