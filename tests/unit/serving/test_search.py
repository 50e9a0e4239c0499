"""`/v1/search`: the index's own answer, while others change it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from starlette.testclient import TestClient

import tiny
from unimoer import UniMoER
from unimoer.model.checkpoint import save_model
from unimoer.search import SearchIndex
from unimoer.serving import server
from unimoer.serving.settings import Settings

TEXTS = {key: document.content for key, document in tiny.dataset("kitchen").corpus.items()} | {"blank": " "}
QUERY = "find my red kettle"


@pytest.fixture
def index(checkpoint: Path, tmp_path: Path) -> SearchIndex:
    found = SearchIndex.create(tmp_path / "index", checkpoint, device="cpu")
    found.add(TEXTS)
    return found


@pytest.mark.parametrize("retrieve", ["fused", "dense", "bm25"])
@pytest.mark.parametrize("rerank", [0, 5])
def test_it_is_the_index(
    serve: Callable[..., TestClient], index: SearchIndex, model: UniMoER, retrieve: Any, rerank: int
) -> None:
    client = serve(model=index.model, index=index)
    body = {"query": QUERY, "k": 7, "retrieve": retrieve, "rerank": rerank}
    answer = client.post("/v1/search", json=body).json()
    expected = index.search(QUERY, 7, retrieve=retrieve, rerank=rerank)
    assert [one["id"] for one in answer["hits"]] == [one.id for one in expected.hits]
    for one, other in zip(answer["hits"], expected.hits, strict=True):
        assert one == pytest.approx(asdict(other), abs=1e-4)
    assert answer["milliseconds"].keys() == expected.milliseconds.keys()
    assert client.get("/v1/models").json()["data"][0]["documents"] == len(TEXTS)


def test_one_thread_alone_computes(
    serve: Callable[..., TestClient], index: SearchIndex, model: UniMoER, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that does has OpenMP threads of its own, and with more of them than cores every batch takes longer."""
    seen: list[threading.Thread] = []

    def noting(function: Any) -> Any:
        def noted(*values: Any, **settings: Any) -> Any:
            seen.append(threading.current_thread())
            return function(*values, **settings)

        return noted

    monkeypatch.setattr(index, "retrieve", noting(index.retrieve))
    for name in ("embed", "score"):
        monkeypatch.setattr(model.model, name, noting(getattr(model.model, name)))
    client = serve(model=model, index=index)
    assert client.post("/v1/search", json={"query": QUERY, "rerank": 5}).json()["hits"]
    assert len(seen) >= 3 and {one.name for one in seen} == {"engine"}
    # Loading computes too: its threads are to be gone.
    seen.clear()
    monkeypatch.setattr(server.UniMoER, "load", noting(server.UniMoER.load))
    monkeypatch.setattr(server, "_listen", mock.MagicMock())
    monkeypatch.setattr(server._Server, "run", lambda *_, **__: None)
    server.serve(str(model.checkpoint), None, Settings(), host="127.0.0.1", port=0, device="cpu", tell=lambda _: None)
    assert len(seen) == 1 and not seen[0].is_alive()


def test_what_another_process_changes_is_seen(serve: Callable[..., TestClient], index: SearchIndex) -> None:
    client = serve(model=index.model, index=SearchIndex.open(index.folder, device="cpu"))
    body = {"query": "where is the purple dragon", "k": 1, "retrieve": "bm25"}
    assert client.post("/v1/search", json=body).json()["hits"] == []
    index.add({"new": "A purple dragon."})
    found = client.post("/v1/search", json=body | {"return_documents": False}).json()["hits"]
    assert [one["id"] for one in found] == ["new"] and "text" not in found[0]
    index.delete(["new"])
    assert client.post("/v1/search", json=body).json()["hits"] == []


def test_an_index_that_is_gone_or_broken_is_one_line(serve: Callable[..., TestClient], index: SearchIndex) -> None:
    client = serve(model=index.model, index=index)
    for content in ("", "{", '{"format": 99}'):
        (index.folder / "index.json").write_text(content)
        answer = client.post("/v1/search", json={"query": QUERY})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "index_unreadable"
        assert str(index.folder) not in answer.text
    (index.folder / "index.json").unlink()
    assert client.post("/v1/search", json={"query": QUERY}).status_code == 503
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_an_index_made_anew_with_another_model_is_never_searched(
    serve: Callable[..., TestClient], index: SearchIndex, base: Path, tmp_path: Path
) -> None:
    client = serve(model=index.model, index=SearchIndex.open(index.folder, device="cpu"))
    save_model(tiny.build(base, seed=7, noise=0.3), tmp_path / "other")
    shutil.rmtree(index.folder)
    SearchIndex.create(index.folder, tmp_path / "other", device="cpu").add(TEXTS)
    for _ in range(3):
        answer = client.post("/v1/search", json={"query": QUERY, "retrieve": "dense"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "index_unreadable"


def test_a_search_by_words_has_its_place_in_the_queue(serve: Callable[..., TestClient], index: SearchIndex) -> None:
    client = serve(model=index.model, index=index, queue_tokens=8)
    going, begun = threading.Event(), threading.Event()

    def stand() -> None:
        begun.set()
        assert going.wait(30)

    client.app.state.service.engine.call(stand, 8)  # type: ignore[attr-defined]
    assert begun.wait(30)
    try:
        assert client.post("/v1/search", json={"query": QUERY, "retrieve": "bm25"}).status_code == 429
    finally:
        going.set()


def test_without_an_index_it_is_not_found(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"query": QUERY})
    assert answer.status_code == 404 and "--index" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [{"k": 0}, {"k": 1001}, {"rerank": -1}, {"retrieve": "sparse"}, {"query": None}])
def test_mistakes(serve: Callable[..., TestClient], index: SearchIndex, body: dict[str, Any]) -> None:
    client = serve(model=index.model, index=index)
    answer = client.post("/v1/search", json={"query": QUERY} | body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(body))
    assert client.post("/v1/search", json={"query": "  "}).json()["hits"] == []
