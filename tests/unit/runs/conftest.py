"""Single runs of the tiny configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import RunSpec
from unimoer.runs import execute
from unimoer.studies.planning import single_run


@pytest.fixture
def spec(experiment: Callable[..., dict[str, Any]]) -> Callable[..., RunSpec]:
    """The run of one arm."""

    def make(arm: str = "rank_only", **changes: Any) -> RunSpec:
        return single_run(tiny.parsed(experiment(arms=[arm], **changes)), tiny.CPU)

    return make


@pytest.fixture(scope="module")
def joint(base: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished run of `joint_single`. Tests that change files must copy it."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIMOER_CACHE", str(shared_cache))
        execute(single_run(tiny.parsed(tiny.experiment(base, data, arms=["joint_single"])), tiny.CPU), folder)
    return folder
