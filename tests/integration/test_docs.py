"""Every command that the documentation gives is one that the program understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from unimoer.cli import build_app
from unimoer.cli.options import find_config
from unimoer.config import load_config

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


def understood(words: list[str]) -> click.Context:
    """Parse a command as the program would, without running it."""
    command = typer.main.get_command(build_app())
    context = click.Context(command)
    for name in list(words):
        if not isinstance(command, click.Group):
            break
        found = command.get_command(context, name)
        assert found is not None, f"no verb {name!r}"
        command, words = found, words[1:]
    if isinstance(command, click.Group) or not words:
        return context
    return command.make_context("unimoer", list(words))


def test_the_documentation_gives_commands() -> None:
    given = {" ".join(words) for page, words in commands() if page == "README.md"}
    assert {"make quick", "make test"} <= given


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_is_understood(page: str, words: list[str]) -> None:
    tool, *rest = words
    if tool == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), page
        return
    if tool.startswith("python"):
        assert (ROOT / rest[0]).is_file(), page
        return
    context = understood(rest)
    name = context.params.get("config")
    if name and not str(name).endswith(".yaml"):
        load_config(find_config(str(name)), context.params.get("overrides") or ())
