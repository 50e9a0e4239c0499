"""Synthetic studies in folders of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from study_folder import write_study
from unimoer.types import Task


@pytest.fixture(name="write_study")
def write_study_fixture(tmp_path: Path) -> Callable[..., Path]:
    """`write_study` into a folder of the test's own."""

    def write(levels: Mapping[str, Mapping[Task, float]], **options: Any) -> Path:
        return write_study(tmp_path / "study", levels, **options)

    return write
