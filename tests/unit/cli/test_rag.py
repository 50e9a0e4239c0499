"""`unimoer run rag` as the command line calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("option", "name"),
    [
        (["--quick"], "--quick"),
        (["--arms", "emb_only"], "--arms"),
        (["--executor", "ray"], "--executor"),
        (["--workers", "2"], "--workers"),
        (["--amend"], "--amend"),
    ],
)
def test_options_of_training_are_refused(refused: Callable[..., str], option: list[str], name: str) -> None:
    assert f"{name}: is of studies that train; rag has --config, --set, --output and --device" in refused(
        "run", "rag", *option
    )


def test_mistakes_are_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--set sed=1: sed: unknown key; did you mean 'seed'?" in refused("run", "rag", "--set", "sed=1")
    assert "quick.yaml: seeds: unknown key" in refused("run", "rag", "--config", "quick")
    config = tmp_path / "my.yaml"
    config.write_text("questions: {own: {source: none.jsonl}}\n")
    assert "none.jsonl: no such file" in refused("run", "rag", "--config", config, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
