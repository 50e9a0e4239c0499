"""The code of the page about integrations runs, block by block, with a small model in place of the named one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from unimoer import UniMoER
from unimoer.model.checkpoint import save_model

PAGE = (Path(__file__).parents[3] / "docs" / "integrations.md").read_text()
BLOCKS = {
    title: block
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
}


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> UniMoER:
    folder = tmp_path_factory.mktemp("pages") / "checkpoint"
    save_model(tiny.build(base, noise=0.3), folder)
    return UniMoER.load(folder, device="cpu")


def test_every_block_is_run() -> None:
    assert set(BLOCKS) == {"LangChain", "LlamaIndex", "MTEB", "Qdrant", "sentence-transformers"}
    assert PAGE.count("```python") == len(BLOCKS)


@pytest.mark.parametrize("title", sorted(BLOCKS))
def test_the_code_of_the_page_runs(title: str, model: UniMoER, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load = UniMoER.load
    named = "smollm2-135m-search"
    monkeypatch.setattr(UniMoER, "load", lambda name, **options: model if name == named else load(name, **options))
    names: dict[str, object] = {}
    exec(BLOCKS[title], names)
    assert len(names["scores" if title == "MTEB" else "best"]) == 2  # type: ignore[arg-type]
