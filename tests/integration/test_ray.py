"""A study on two workers of a Ray of its own ends as it does in one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.files import read_json

pytest.importorskip("ray", reason="Ray is not installed: extra 'cluster'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PATIENCE = 120.0
"""Seconds until the run that is to be killed must be in the middle of its training."""


@pytest.fixture(scope="module")
def config(base: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms, long enough to be killed in the middle."""
    content = tiny.experiment(
        base,
        data,
        training__embedding={"steps": 40, "batch_size": 8, "negatives": 1, "random_until": 0.5},
        training__reranking={"steps": 40, "batch_size": 6, "negatives": 2},
        training__checkpoint_every=5,
    )
    return tiny.write_yaml(content, tmp_path_factory.mktemp("config") / "tiny.yaml")


def arguments(config: Path, folder: Path, *more: str) -> list[str | Path]:
    return ["run", "kill-gate", "--config", config, "--output", folder, "--device", "cpu", *more]


RAY = ("--executor", "ray", "--workers", "2")


@pytest.fixture(scope="module")
def local(config: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The same study in one process."""
    folder = tmp_path_factory.mktemp("local") / "tiny"
    done = tiny.unimoer(*arguments(config, folder), cache=shared_cache)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """All that a study says of its scores, without when it was declared."""
    results, decision = read_json(folder / "results.json"), read_json(folder / "decision.json")
    return {
        **{part: results[part] for part in ("scores", "points", "recovery", "ceilings", "routing")},
        "decision": {name: value for name, value in decision.items() if name != "time"},
    }


def assert_same(folder: Path, local: Path) -> None:
    """In what it says, and in the weights and scores of every run."""
    assert outcome(folder) == outcome(local)
    names = {run.name for run in (local / "runs").iterdir()}
    assert {run.name for run in (folder / "runs").iterdir()} == names
    for run in (local / "runs").iterdir():
        twin = folder / "runs" / run.name
        for path in [*run.glob("eval/*/*/*/*/*"), *run.glob("checkpoints/final/*")]:
            assert (twin / path.relative_to(run)).read_bytes() == path.read_bytes(), path


def test_two_workers_end_as_one_process_does(config: Path, local: Path, tmp_path: Path, shared_cache: Path) -> None:
    folder = tmp_path / "tiny"
    done = tiny.unimoer(*arguments(config, folder, *RAY), cache=shared_cache)
    assert done.returncode == 0, done.stderr
    assert "its worker was lost" not in done.stdout
    # Progress of both comes back to the one process that shows it.
    for arm in ("emb_only", "rank_only", "joint_single"):
        assert f"{arm} seed 1: training" in done.stdout
    assert_same(folder, local)


def test_the_run_of_a_killed_worker_is_taken_up_from_its_checkpoint(
    config: Path, local: Path, tmp_path: Path, shared_cache: Path
) -> None:
    folder = tmp_path / "tiny"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            tiny.command(*arguments(config, folder, *RAY)), env=tiny.environment(shared_cache), stdout=out, stderr=err
        )
        try:
            run, before, step = _in_the_middle(process, folder)
            worker = int((run / ".lock").read_text())
            assert worker != process.pid
            os.kill(worker, signal.SIGKILL)
            process.wait(timeout=240)
        finally:
            process.terminate()
            process.wait(timeout=30)
    printed = (tmp_path / "out").read_text()
    assert process.returncode == 0, (tmp_path / "err").read_text()
    assert printed.count("joint_single seed 1: its worker was lost; another goes on") == 1
    assert int((run / ".lock").read_text()) != worker
    after = (run / "metrics.jsonl").read_text().splitlines()
    # To the second that each step took: what the checkpoint has was not trained again.
    assert after[:step] == before[:step]
    assert [line["step"] for line in tiny.lines(run / "metrics.jsonl")] == list(range(1, 81))
    assert_same(folder, local)


def _in_the_middle(process: subprocess.Popen[Any], folder: Path) -> tuple[Path, list[str], int]:
    """Wait until the joint run has a checkpoint; its folder, its log, and the step of the checkpoint."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        for saved in folder.glob("runs/joint_single-*/checkpoints/step-*"):
            run = saved.parents[1]
            before = (run / "metrics.jsonl").read_text().splitlines()
            assert not (run / "checkpoints" / "final").exists(), "it was trained before it could be killed"
            return run, before, int(saved.name.removeprefix("step-"))
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint of the joint run; the command ended with {process.poll()}")


def test_a_cluster_that_does_not_answer_is_one_line(config: Path, tmp_path: Path, shared_cache: Path) -> None:
    """Nobody listens at port 1."""
    done = subprocess.run(
        tiny.command(*arguments(config, tmp_path / "tiny", *RAY)),
        env=tiny.environment(shared_cache) | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("unimoer: --executor ray: no cluster at 127.0.0.1:1: ")
    assert line.endswith("; check RAY_ADDRESS")
