"""Workers, and those that are gone, on a cluster that is made up: what Ray itself does is in `tests/integration`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unimoer.config import Resources, RunSpec
from unimoer.errors import UserError
from unimoer.executors import TRIES
from unimoer.executors import ray as executor
from unimoer.executors.ray import LOST, RayExecutor
from unimoer.runs import ignore

Outcome = Callable[[int], "Exception | str | None"]


def cluster(outcomes: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cluster on which the n-th try of an arm ends as `outcomes[arm](n)` says; returns the tries as they come."""
    tried: list[str] = []

    def remote(**_: Any) -> Callable[..., Any]:
        def start(spec: str, folder: str, where: str, queue: Any) -> tuple[str, int]:
            arm = RunSpec.model_validate_json(spec).arm
            tried.append(arm)
            return arm, tried.count(arm)

        return lambda work: SimpleNamespace(remote=start)

    def get(reference: tuple[str, int]) -> str | None:
        found = outcomes[reference[0]](reference[1])
        if isinstance(found, Exception):
            raise found
        return found

    def wait(running: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return list(running[:1]), list(running[1:])

    class EmptyError(Exception):
        pass

    def nothing() -> None:
        raise EmptyError

    queue = ModuleType("ray.util.queue")
    queue.Empty = EmptyError  # type: ignore[attr-defined]
    queue.Queue = lambda **_: SimpleNamespace(get_nowait=nothing, shutdown=lambda: None)  # type: ignore[attr-defined]
    real = pytest.importorskip("ray.exceptions")
    ray = ModuleType("ray")
    for name, value in {"remote": remote, "get": get, "wait": wait, "exceptions": real}.items():
        setattr(ray, name, value)
    ray.is_initialized = lambda: True  # type: ignore[attr-defined]
    for name, module in {"ray": ray, "ray.util": ModuleType("ray.util"), "ray.util.queue": queue}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return tried


def lost(name: str) -> Exception:
    error = getattr(pytest.importorskip("ray.exceptions"), name)
    found: Exception = error.__new__(error)
    return found


def run(*arms: str, **fields: Any) -> None:
    jobs = [(RunSpec(arm=arm, seed=0, suites=(), **fields), Path(arm)) for arm in arms]
    RayExecutor(2).run(jobs, ignore)


@pytest.mark.parametrize("name", LOST)
def test_whatever_takes_a_worker_its_run_is_taken_up_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = cluster({"one": lambda n: lost(name) if n == 1 else None}, monkeypatch)
    run("one")
    assert tried == ["one", "one"]


def test_a_run_that_loses_every_worker_does_not_stop_the_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is running is left to finish; what has not begun does not begin."""
    ends: list[str] = []

    def fine(number: int) -> None:
        ends.append("other")

    tried = cluster({"bad": lambda n: lost("WorkerCrashedError"), "other": fine, "late": lambda n: None}, monkeypatch)
    monkeypatch.setattr(sys.modules["ray"], "wait", lambda running, timeout: (_last(running), []))
    with pytest.raises(UserError, match=f"bad: its worker was lost {TRIES} times"):
        run("bad", "other", "late")
    assert tried.count("bad") == TRIES and ends == ["other"] and "late" not in tried


def _last(running: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The bad one first, as long as there is one."""
    return sorted(running)[:1]


def test_runs_on_a_gpu_must_ask_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = cluster({"one": lambda n: None}, monkeypatch)
    with pytest.raises(UserError, match=r"runs on cuda must ask for a GPU; add --set resources\.gpus=1"):
        run("one", device="cuda")
    run("one", device="cuda", resources=Resources(gpus=1))
    assert tried == ["one"]


def test_relative_paths_mean_on_a_worker_what_they_meant_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts the workers of a cluster wherever it was started itself."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    seen: list[Path] = []
    monkeypatch.setattr(executor, "execute", lambda spec, folder, put: seen.append(Path("data").resolve()))
    spec = RunSpec(arm="bm25", seed=0, suites=())
    work = executor._work(spec.model_dump_json(), "run", str(tmp_path), SimpleNamespace(put=None))
    assert work is None
    assert seen == [tmp_path / "data"]
