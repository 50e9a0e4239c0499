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


def test_points_of_a_study_are_not_dropped_silently(refused: Callable[..., str]) -> None:
    one = ["--set", "arms=[joint_single]", "--set", "seeds=[1]"]
    assert "scale_quick: variants: train makes one run" in refused("train", "scale_quick", *one)
    line = refused("run", "kill-gate", "--config", "scale_quick")
    assert "variants: a verdict is about one point, and there are 2; `unimoer run scale`" in line
