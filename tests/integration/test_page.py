"""The server's page, in a real browser without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

import tiny
from served import server
from unimoer.model.checkpoint import save_model
from unimoer.search import SearchIndex

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
ADAPTER = {
    "rank": 8,
    "alpha": 16,
    "experts": {"embedding": 2, "reranking": 2, "shared": 4},
    "router": {"type": "sparsegen"},
}
EVIL = "<img src=x onerror=\"document.title='broken into'\"> kettle"


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "tiny-model"
    save_model(tiny.build(base, noise=0.3, adapter=ADAPTER), folder)
    return folder


@pytest.fixture(scope="module")
def index(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "index"
    texts = {key: document.content for key, document in tiny.dataset("kitchen").corpus.items()}
    SearchIndex.create(folder, checkpoint, device="cpu").add(texts | {"evil": EVIL})
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as found:
        # A container's root has no sandbox.
        yield found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    """Whatever goes wrong in the page fails the test, and it may ask its own server alone."""
    found: Page = browser.new_page(viewport={"width": 1180, "height": 1000})
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("request", lambda request: problems.append(request.url) if "127.0.0.1" not in request.url else None)
    yield found
    found.close()
    assert [problem for problem in problems if not problem.startswith("data:")] == []


def ids(page: Page, order: str) -> list[str]:
    return [str(item.get_attribute("data-id")) for item in page.locator(f"#{order} li").all()]


def test_a_query_against_an_index(page: Page, checkpoint: Path, index: Path, tmp_path: Path) -> None:
    with server(checkpoint, tmp_path / "log", "--index", index) as running:
        page.goto(running.url)
        expect(page.locator("#model")).to_have_text("tiny-model")
        expect(page.locator("#about")).to_contain_text("31 documents")
        expect(page.locator("#documents")).to_be_hidden()
        page.fill("#query", "find my red kettle")
        page.click("button")
        expect(page.locator("#reranked li")).to_have_count(10)
        expect(page.locator("#layers tr").first).to_contain_text("shared")
        # Both stages show the same documents, each in its own order, with its scores.
        retrieved, reranked = ids(page, "retrieved"), ids(page, "reranked")
        expected = [hit.id for hit in SearchIndex.open(index, device="cpu").search("find my red kettle", 10).hits]
        assert retrieved == expected and sorted(reranked) == sorted(retrieved) and reranked != retrieved
        moved = page.locator("#reranked li").first
        by = retrieved.index(reranked[0])
        if by:
            expect(moved).to_contain_text(f"▲{by}")
        scores = [float(one.split("▲")[0].split("▼")[0]) for one in page.locator("#reranked .score").all_inner_texts()]
        assert scores == sorted(scores, reverse=True) and all(0 <= one <= 1 for one in scores)
        expect(page.locator("#took")).to_contain_text("rerank")
        # Text of a document is text.
        page.select_option("#retrieve", "bm25")
        page.select_option("#depth", "20")
        page.fill("#query", "img src onerror kettle")
        page.press("#query", "Enter")
        expect(page.locator('#retrieved li[data-id="evil"] .text')).to_have_text(EVIL)
        assert page.title() == "UniMoER"
        # Where nothing fits, it says so.
        page.fill("#query", "zzzz")
        page.press("#query", "Enter")
        expect(page.locator("#took")).to_have_text("Nothing found.")


def test_without_an_index_what_is_pasted_is_ranked(page: Page, checkpoint: Path, tmp_path: Path) -> None:
    with server(checkpoint, tmp_path / "log", key="a secret") as running:
        page.goto(running.url)
        # The key is asked for, and kept to the page.
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key", "a secret")
        page.press("#key", "Tab")
        expect(page.locator("#model")).to_have_text("tiny-model")
        page.fill("#query", "red kettle")
        page.click("button")
        expect(page.locator("#problem")).to_contain_text("Paste some documents")
        page.fill("#documents", "The red kettle.\n\nA bench.\nThe golden oven.")
        page.click("button")
        expect(page.locator("#reranked li")).to_have_count(3)
        assert sorted(ids(page, "reranked")) == sorted(ids(page, "retrieved")) == ["line 1", "line 2", "line 3"]
        expect(page.locator("#problem")).to_be_hidden()
