"""The code of every integration's page runs, with a small model in place of the named one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from unimoer import UniMoER, integrations
from unimoer.model.checkpoint import save_model

FOLDER = Path(__file__).parents[3] / "docs" / "integrations"
BLOCKS = {
    page.stem: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for page in FOLDER.glob("*.md")
    if page.stem != "README"
}


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> UniMoER:
    folder = tmp_path_factory.mktemp("pages") / "checkpoint"
    save_model(tiny.build(base, noise=0.3), folder)
    return UniMoER.load(folder, device="cpu")


def test_every_integration_has_a_page_with_code() -> None:
    files = {path.stem.replace("_", "-") for path in Path(integrations.__file__).parent.glob("[!_]*.py")}
    assert set(BLOCKS) == files and all(len(blocks) == 1 for blocks in BLOCKS.values())


@pytest.mark.parametrize("page", sorted(BLOCKS))
def test_the_code_of_the_page_runs(page: str, model: UniMoER, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load = UniMoER.load
    named = "smollm2-135m-search"
    monkeypatch.setattr(UniMoER, "load", lambda name, **options: model if name == named else load(name, **options))
    names: dict[str, object] = {}
    exec(BLOCKS[page][0], names)
    assert len(names["scores" if page == "mteb" else "best"]) == 2  # type: ignore[arg-type]
