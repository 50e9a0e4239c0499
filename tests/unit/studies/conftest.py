"""Studies for tests to read: synthetic ones in folders of their own, and one that was really run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny
from study_folder import write_study
from unimoer.types import Task


@pytest.fixture(name="write_study")
def write_study_fixture(tmp_path: Path) -> Callable[..., Path]:
    """`write_study` into a folder of the test's own."""

    def write(levels: Mapping[str, Mapping[Task, float]], **options: Any) -> Path:
        return write_study(tmp_path / "study", levels, **options)

    return write


@pytest.fixture(scope="session")
def finished(base: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished study of the default tiny configuration. Tests that change files must copy it."""
    folder = tmp_path_factory.mktemp("finished") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIMOER_CACHE", str(shared_cache))
        tiny.run_study(tiny.experiment(base, data), folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")
