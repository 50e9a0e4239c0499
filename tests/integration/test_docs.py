"""Every command that the documentation gives is one that the program understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from unimoer.cli import build_app
from unimoer.cli.options import find_config
from unimoer.cli.rag import RAG
from unimoer.config import load_config, load_rag
from unimoer.studies import find_study

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in a fenced block or between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
        for line in [*lines, *INLINE.findall(FENCED.sub("", text))]:
            command = line.strip().removeprefix("$ ").removeprefix("uv run ")
            if re.match(r"(unimoer|make|python\d* scripts/\S+)( |$)", command):
                found.append((page.relative_to(ROOT).as_posix(), shlex.split(command, comments=True)))
    return found


def understood(words: list[str]) -> dict[str, Any]:
    """Parse a command as the program would, without running it; its parameters."""
    command: Any = typer.main.get_command(build_app())
    # Typer's own class: it brings a click of its own, whose groups are no `click.Group`.
    while isinstance(command, TyperGroup) and words:
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    # A verb by its name alone, in running text, gives no arguments.
    return dict(command.make_context("unimoer", list(words)).params) if words else {}


@pytest.mark.parametrize(
    "command", ["runn kill-gate", "run kill-gate --quik", "run a b", "data nothing", "run kill-gate --workers many"]
)
def test_a_wrong_command_is_not_understood(command: str) -> None:
    with pytest.raises(Exception) as caught:
        understood(command.split())
    names = {found.__name__ for found in type(caught.value).__mro__}
    assert names & {"AssertionError", "UsageError"}


def test_the_documentation_gives_commands() -> None:
    given = {" ".join(words) for page, words in commands() if page == "README.md"}
    assert {"make quick", "make test"} <= given


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_is_understood(page: str, words: list[str]) -> None:
    tool, *rest = words
    if tool == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), page
        return
    if tool.startswith("python"):
        assert (ROOT / rest[0]).is_file(), page
        return
    given = understood(rest)
    name = given.get("config")
    # `unimoer run STUDY` in running text stands for any study.
    if given.get("study") == RAG:
        load_rag(find_config(RAG), given.get("overrides") or ())
        return
    if rest[:1] == ["run"] and given and given["study"] != "STUDY":
        study = find_study(given["study"])
        name = name or (study.quick if given["quick"] else study.config)
    if name and not str(name).endswith(".yaml"):
        load_config(find_config(str(name)), given.get("overrides") or ())
