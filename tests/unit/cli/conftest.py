"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unimoer.cli import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run `unimoer ...` in this process, in a folder of the test's own; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """The one line that a user's mistake gets."""

    def run(*arguments: str | Path) -> str:
        code, _, err = call(*arguments)
        assert code == 2
        [line] = err.splitlines()
        assert line.startswith("unimoer: ")
        return line

    return run
