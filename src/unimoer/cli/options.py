"""Options that several verbs share."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import unimoer
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Task

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. training.optimizer.lr=1e-3. Repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]


class Tasks(StrEnum):
    EMBEDDING = "embedding"
    RERANKING = "reranking"
    BOTH = "both"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(Task) if self is Tasks.BOTH else (Task(self.value),)


def config_folder() -> Path:
    """The shipped configurations: inside an installed package, beside the sources in a checkout."""
    package = Path(unimoer.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def find_config(name: str) -> Path:
    """A path, or the name of a shipped configuration such as `quick`.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    shipped = {file.stem: file for file in config_folder().glob("*.yaml")}
    if name not in shipped:
        raise UserError(f"{name}: no such file, and no shipped configuration of that name{did_you_mean(name, shipped)}")
    return shipped[name]


def command_line() -> str:
    """The command as the user would type it again."""
    return shlex.join(["unimoer", *sys.argv[1:]])
