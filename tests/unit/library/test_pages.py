"""The code of the pages about the library and about search runs, with a small model in place of the named one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from unimoer.model.checkpoint import save_model

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", ["library.md", "search.md"])
def test_the_code_of_a_page_runs(page: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny.build(base, noise=0.1), tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1 and "smollm2-135m-search" in blocks[0]
    names: dict[str, object] = {}
    exec(blocks[0].replace("smollm2-135m-search", "checkpoint"), names)
    if page == "search.md":
        assert "bench" in names["index"] and "kettle" not in names["index"]  # type: ignore[operator]
    else:
        assert (tmp_path / "my-model" / "README.md").exists()
