"""Which configuration a command means, whatever lies in the folder that it is called in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unimoer.cli.options import config_folder, find_config


def test_a_folder_of_that_name_is_not_the_configuration(call: Callable[..., object], tmp_path: Path) -> None:
    """`full` is what `unimoer run kill-gate` runs by default; `call` has made `tmp_path` the working folder."""
    (tmp_path / "full").mkdir()
    assert find_config("full") == config_folder() / "full.yaml"


def test_two_configurations_are_one_too_many(refused: Callable[..., str]) -> None:
    line = refused("run", "kill-gate", "--quick", "--config", "full")
    assert "--quick and --config full: the study's quick configuration, or one of your own" in line
