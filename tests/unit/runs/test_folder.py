"""The folder of a run: whose it is, and what can be found in it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from unimoer.errors import UserError
from unimoer.runs.folder import checkpoint_folder, locked, read_spec, run_of, trained_tasks
from unimoer.types import Task


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    # A fork and not a new interpreter: it has all imported, and importing takes seconds.
    holder = os.fork()
    if holder == 0:
        try:
            with locked(tmp_path):
                os.write(write, b"held")
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert os.read(read, 4) == b"held"
        with pytest.raises(UserError, match=rf"another run \(process {holder}\) works here"), locked(tmp_path):
            raise AssertionError("both hold the folder")
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path), pytest.raises(UserError, match="another run"), locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    in_the_way = "taken: cannot be written: a file of that name is in the way; choose another"
    with pytest.raises(UserError, match=in_the_way), locked(tmp_path / "taken"):
        pass
    with pytest.raises(UserError, match="below: cannot be written: Not a directory"), locked(tmp_path / "taken/below"):
        pass


def test_the_checkpoint_of_a_run_or_of_none(joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = joint / "checkpoints" / "final"
    assert checkpoint_folder(joint) == checkpoint_folder(final) == final
    assert run_of(final) == joint.resolve()
    monkeypatch.chdir(final)
    assert run_of(Path()) == joint.resolve(), "named from inside"
    with pytest.raises(UserError, match="no finished checkpoint here"):
        checkpoint_folder(tmp_path)
    alone = shutil.copytree(final, tmp_path / "alone")
    assert run_of(alone) is None
    assert trained_tasks(alone) == tuple(Task)


def test_a_configuration_of_another_version_is_one_line(joint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(joint, tmp_path / "run")
    found = read_spec(copy)
    assert found is not None and found.arm == "joint_single"
    for text in ("arms: [joint_single]\nseeds: [1]\n", "a: [", ""):
        (copy / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: of another version of unimoer") as caught:
            read_spec(copy)
        assert "\n" not in str(caught.value)
    (copy / "config.yaml").unlink()
    assert read_spec(copy) is None
