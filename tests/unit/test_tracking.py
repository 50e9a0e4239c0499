"""Metrics as JSON lines that survive kills, and the optional trackers for real."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tiny
from unimoer.errors import UserError
from unimoer.tracking import SINKS, JsonlWriter, Tracker

RECORD = {"task": "embedding", "domain": "kitchen", "loss": 0.5, "lr": 1e-3}


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "deep" / "log.jsonl")
    writer.write({"step": 1, "loss": 0.5})
    assert (tmp_path / "deep" / "log.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'
    writer.close()


def test_what_is_no_number_becomes_null(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "log.jsonl")
    writer.write({"step": 1, "a": math.nan, "b": -math.inf, "c": None})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "a": None, "b": None, "c": None}
    writer.close()


@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo', "{", '{"step": 1, "x": 1}', "\x00\x00\x00"])
def test_rewind_drops_later_lines_and_a_torn_one(tmp_path: Path, torn: str) -> None:
    """Half a line, a whole one without its end, or the zeros that some file systems leave after a power cut."""
    path = tmp_path / "log.jsonl"
    writer = JsonlWriter(path)
    for step in (1, 2, 3, 4):
        writer.write({"step": step, "x": step})
    writer.close()
    with path.open("a") as file:
        file.write(torn)
    writer = JsonlWriter(path)
    writer.rewind(2)
    writer.write({"step": 3, "x": "again"})
    writer.close()
    kept = tiny.lines(path)
    assert kept[:2] == [{"step": 1, "x": 1}, {"step": 2, "x": 2}]
    assert kept[-1] == {"step": 3, "x": "again"}
    assert all(line["step"] <= 3 and line["x"] != 3 for line in kept)
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_rewind_of_an_empty_log(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "log.jsonl")
    writer.rewind(0)
    writer.write({"step": 1})
    writer.close()
    assert tiny.lines(tmp_path / "log.jsonl") == [{"step": 1}]


def test_a_full_disk_is_one_line() -> None:
    """/dev/full accepts to be opened and nothing else."""
    writer = JsonlWriter(Path("/dev/full"))
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left on device"):
        writer.write({"step": 1})


def test_tensorboard_gets_every_number_under_its_task_and_domain(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, ["tensorboard"])
    tracker.rewind(0)
    for step in (1, 2, 3):
        tracker.log({"step": step, **RECORD, "loss": 1 / step})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["embedding/kitchen/loss", "embedding/kitchen/lr"]
    found = [(event.step, event.value) for event in events.Scalars("embedding/kitchen/loss")]
    assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [line["step"] for line in tiny.lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_tensorboard_shows_a_step_once_after_an_interruption(tmp_path: Path) -> None:
    for first in (1, 3):
        tracker = Tracker(tmp_path, ["tensorboard"])
        tracker.rewind(first - 1)
        # The interrupted run got to step 4, its checkpoint was of step 2.
        for step in range(first, first + 4):
            tracker.log({"step": step, **RECORD, "loss": float(first)})
        tracker.close()
        # Files are read in the order of their names, which count seconds.
        [file] = [path for path in (tmp_path / "tensorboard").iterdir() if not path.name.endswith(".read")]
        file.rename(file.with_name(file.name.replace("tfevents.", f"tfevents.{first}") + ".read"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("embedding/kitchen/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0), (5, 3.0), (6, 3.0)]


WANDB = """
import sys
from pathlib import Path
from unimoer.tracking import Tracker
for first in (1, 3):
    tracker = Tracker(Path(sys.argv[1]), ["wandb"])
    tracker.rewind(first - 1)
    for step in (first, first + 1):
        tracker.log({"step": step, "task": "embedding", "domain": "kitchen", "loss": 1 / step})
    tracker.close()
"""


def test_wandb_works_offline_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    """In a process of its own: wandb talks to its helper through a socket, and sockets are blocked here."""
    folder = tmp_path / "joint_single-s1-abcdef01"
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(folder)],
        env=tiny.environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        [log] = run.glob("*.wandb")
        # The id of the run is its folder's name, so that both parts sync to one run.
        assert log.name == f"run-{folder.name}.wandb"
        assert b"embedding/kitchen/loss" in log.read_bytes()
    assert [line["step"] for line in tiny.lines(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_the_trackers_of_the_configuration_are_those_that_exist() -> None:
    from typing import get_args

    from unimoer.config import StudyConfig

    [literal, _] = get_args(StudyConfig.model_fields["trackers"].annotation)
    assert set(get_args(literal)) == set(SINKS)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules is how Python itself marks a module that must not be imported.
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=rf"trackers: {name} is not installed; pip install 'unimoer\[track\]'"):
        Tracker(tmp_path, [name])
