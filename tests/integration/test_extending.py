"""docs/extending.md is applied, block by block, to a copy of the package, and what it claims is run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (?P<where>.+?) -->\n```python\n(?P<code>.*?)```", re.DOTALL)
WHERE = re.compile(r"(?P<how>new|in): (?P<file>[^,]+?)(?:, (?P<place>before|after|replace): (?P<line>.+))?")
MOST_FILES = 4
"""Of the package and its tests, for one part."""


def parts() -> dict[str, list[tuple[str, str]]]:
    """Title -> (where, code) of its blocks."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: [(found["where"], found["code"]) for found in BLOCK.finditer(section)]
        for section in sections
    }


def apply(where: str, code: str, root: Path) -> Path:
    """Make one edit; returns the file."""
    found = WHERE.fullmatch(where)
    assert found is not None, where
    path = root / found["file"]
    if found["how"] == "new":
        assert not path.exists(), path
        path.write_text(code, encoding="utf-8")
        return path
    text = path.read_text(encoding="utf-8")
    line = found["line"]
    # The comment's end takes the space before it; whole lines begin where the marker does.
    matches = list(re.finditer(rf"^{re.escape(line)}", text, re.MULTILINE))
    assert len(matches) == 1, f"{path}: {len(matches)} lines begin with {line!r}"
    start = matches[0].start()
    end = text.index("\n", start) + 1
    if found["place"] == "replace":
        # What follows the marker in its line stays.
        text = text[:start] + code.rstrip("\n") + text[matches[0].end() :]
    else:
        at = start if found["place"] == "before" else end
        text = text[:at] + code + text[at:]
    path.write_text(text, encoding="utf-8")
    return path


def test_every_part_is_there() -> None:
    assert list(parts()) == ["A router", "A score head", "A loss", "A schedule", "A suite", "A study", "An executor"]


@pytest.mark.parametrize("title", [title for title, blocks in parts().items() if blocks])
def test_a_part_touches_at_most_four_files(title: str) -> None:
    """Its test, which every part has, is one of them."""
    files = {found["file"] for where, _ in parts()[title] if (found := WHERE.fullmatch(where))}
    assert len(files) + 1 <= MOST_FILES, files


@pytest.mark.slow
def test_every_example_works(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    checks = []
    for title, blocks in parts().items():
        for where, code in blocks:
            if where == "check":
                checks.append(f"# {title}\n{code}")
            else:
                apply(where, code, tmp_path)
    script = tmp_path / "checks.py"
    script.write_text("\n".join(checks), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
