"""The one command in processes of its own: from data to verdict, again for free, and through kills."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
import tiny
from unimoer.cli import main
from unimoer.files import read_json

SCRIPTS = Path(__file__).parents[2] / "scripts"


def settings(base: Path, data: dict[str, Path]) -> dict[str, Any]:
    """Long enough to be killed in the middle of anything, with everything on that has a state."""
    return tiny.experiment(
        base,
        data,
        arms=["emb_only", "rank_only", "joint_single", "joint_moe", "famo"],
        model__adapter={"rank": 12, "alpha": 24.0, "dropout": 0.1},
        training__embedding={"steps": 24, "batch_size": 8, "negatives": 1, "random_until": 0.5},
        training__reranking={"steps": 24, "batch_size": 6, "negatives": 2},
        training__optimizer={"lr": 5e-3, "accumulation": 2},
        training__checkpoint_every=3,
    )


@pytest.fixture(scope="module")
def config(base: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_yaml(settings(base, data), tmp_path_factory.mktemp("config") / "tiny.yaml")


def arguments(config: Path, folder: Path) -> list[str | Path]:
    return ["run", "kill-gate", "--config", config, "--output", folder, "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(
    config: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The experiment without interruption, and what its process said."""
    folder = tmp_path_factory.mktemp("whole") / "tiny"
    return folder, tiny.unimoer(*arguments(config, folder), cache=shared_cache)


def files(folder: Path) -> dict[str, int]:
    found = (path for path in (folder / "runs").rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_from_data_to_verdict(whole: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = whole
    assert (done.returncode, done.stderr) == (0, "")
    decision, results = read_json(folder / "decision.json"), read_json(folder / "results.json")
    assert decision["verdict"] in ("PASS", "MARGINAL", "FAIL")
    assert isinstance(decision["preliminary"], bool)
    for task in ("embedding", "reranking"):
        found = decision["tasks"][task]
        for arm in ("untrained", "specialist", "joint"):
            assert 0 <= found[arm]["mean"] <= 1
        low, high = found["tir"]["ci95"]
        assert low <= found["tir"]["mean"] <= high
        assert found["tir"]["per_seed"].keys() == {"1"}
    assert results["scores"].keys() == {""}
    assert results["scores"][""].keys() == {"embedding", "reranking"}
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "report.md").read_text()
    assert {path.suffix for path in (folder / "tables").iterdir()} == {".md", ".tex"}
    assert {path.suffix for path in (folder / "figures").iterdir()} >= {".png", ".pdf"}
    assert len(list((folder / "figures").glob("*.png"))) >= 3
    # The start of the learned router is among the arms at no extra typing.
    assert list(read_json(folder / "plan.json")["declared"]["arms"][""])[-1] == "joint_moe_start"
    # The verdict and the way to the report are what the user sees last.
    assert decision["verdict"] in done.stdout
    assert "report.html" in done.stdout


@pytest.mark.slow
def test_the_same_command_again_does_nothing_twice(
    whole: tuple[Path, subprocess.CompletedProcess[str]], config: Path, shared_cache: Path
) -> None:
    folder, _ = whole
    before, decision = files(folder), (folder / "decision.json").read_bytes()
    done = tiny.unimoer(*arguments(config, folder), cache=shared_cache)
    assert done.returncode == 0
    assert "9 of 9 runs are already done" in done.stdout
    assert "training" not in done.stdout
    assert files(folder) == before
    assert (folder / "decision.json").read_bytes() == decision


@pytest.mark.slow
def test_analyze_decides_the_same_from_the_files_alone(
    whole: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = whole
    before = {name: (folder / name).read_bytes() for name in ("decision.json", "results.json")}
    for name in (*before, "report.html"):
        (folder / name).unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", str(folder)])
    assert not stopped.value.code
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "report.html").exists()
    assert read_json(folder / "decision.json")["verdict"] in capsys.readouterr().out


Moment = Callable[[Path], bool]


def exists(pattern: str) -> Moment:
    return lambda folder: any(folder.glob(pattern))


def steps(arm: str, count: int) -> Moment:
    """So many steps are in the log of an arm."""
    return lambda folder: any(
        path.read_bytes().count(b"\n") >= count for path in folder.glob(f"runs/{arm}-*/metrics.jsonl")
    )


# Each stays true once it is: on a busy machine a process is stopped later than meant, and then that is the test.
MOMENTS: dict[str, tuple[signal.Signals, Moment]] = {
    "by Ctrl-C in training": (signal.SIGINT, steps("emb_only", 4)),
    "in training, past a checkpoint": (signal.SIGKILL, steps("emb_only", 8)),
    "after training, before its result is whole": (signal.SIGKILL, exists("runs/emb_only-*/checkpoints/final")),
    "between two evaluations": (signal.SIGKILL, exists("runs/emb_only-*/eval/*/final/kitchen/embedding/metrics.json")),
    "between two runs": (signal.SIGKILL, exists("runs/rank_only-*/env.json")),
    "in joint training, past a probe": (signal.SIGKILL, steps("joint_single", 10)),
    "with routed experts, past a checkpoint": (signal.SIGKILL, steps("joint_moe", 10)),
    "with weights of the losses": (signal.SIGKILL, steps("famo", 10)),
    "as the decision is made": (signal.SIGKILL, exists("results.json")),
}


def interrupt(config: Path, folder: Path, cache: Path, sign: signal.Signals, when: Moment) -> str:
    """Start the command, stop it as soon as `when` holds, and return its stderr."""
    err = folder.with_suffix(".err")
    process = forked.start(arguments(config, folder), cache=cache, err=err)
    try:
        while process.is_alive() and not when(folder):
            time.sleep(0.002)
        assert process.is_alive(), f"it finished before it could be stopped: {err.read_text()}"
        assert process.pid is not None
        os.kill(process.pid, sign)
        process.join(timeout=60)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == (130 if sign == signal.SIGINT else -sign)
    return err.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    whole: tuple[Path, subprocess.CompletedProcess[str]], config: Path, tmp_path: Path, shared_cache: Path
) -> None:
    """One experiment, stopped at every one of these moments in turn, then left alone."""
    folder = tmp_path / "tiny"
    for moment, (sign, when) in MOMENTS.items():
        err = interrupt(config, folder, shared_cache, sign, when)
        if sign == signal.SIGINT:
            assert err == "unimoer: stopped; the same command goes on from the last checkpoint\n", moment
        else:
            assert err == "", moment
    done = tiny.unimoer(*arguments(config, folder), cache=shared_cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert "already done" in done.stdout
    uninterrupted, _ = whole
    # When it was declared is no result.
    decisions = [read_json(side / "decision.json") | {"time": ""} for side in (uninterrupted, folder)]
    assert decisions[0] == decisions[1]
    results = [read_json(side / "results.json") for side in (uninterrupted, folder)]
    for part in ("scores", "ceilings", "recovery", "routing"):
        assert results[0][part] == results[1][part], part
    assert "joint_moe" in results[0]["routing"]
    for run in (uninterrupted / "runs").iterdir():
        twin = folder / "runs" / run.name
        for path in run.glob("eval/*/*/*/*/*"):
            assert (twin / path.relative_to(run)).read_bytes() == path.read_bytes(), path
        for log in run.glob("*.jsonl"):
            lines = [[{**line, "seconds": 0} for line in tiny.lines(side / log.name)] for side in (run, twin)]
            assert lines[0] == lines[1], log
        for path in run.glob("checkpoints/final/*"):
            assert (twin / path.relative_to(run)).read_bytes() == path.read_bytes(), path
        if (run / "checkpoints").exists():
            assert [path.name for path in (twin / "checkpoints").iterdir()] == ["final"]


@pytest.mark.slow
def test_a_second_runner_is_refused_while_the_first_works(config: Path, tmp_path: Path, shared_cache: Path) -> None:
    folder = tmp_path / "tiny"
    process = forked.start(arguments(config, folder), cache=shared_cache, err=tmp_path / "err")
    assert process.pid is not None
    try:
        while process.is_alive() and not (folder / "plan.json").exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        second = tiny.unimoer(*arguments(config, folder), cache=shared_cache)
    finally:
        process.kill()
        process.join()
    assert second.returncode == 2
    assert second.stderr.splitlines() == [
        f"unimoer: {folder}: another run (process {process.pid}) works here; wait for it or stop it"
    ]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("run_experiment1.py", "--quick"),
        ("train.py", "--output"),
        ("evaluate.py", "--data"),
        ("analyze_results.py", "finished study"),
    ],
)
def test_scripts_are_the_verbs(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert not stopped.value.code
    assert words in capsys.readouterr().out
