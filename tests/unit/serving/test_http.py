"""What is the same on every path: errors, the key, limits, request ids, metrics, logs, clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from starlette.testclient import TestClient

import tiny
from unimoer import UniMoER
from unimoer.model.checkpoint import save_model
from unimoer.serving.app import create_app
from unimoer.serving.observe import JsonLines, Metrics
from unimoer.serving.service import Service
from unimoer.serving.settings import Settings

Serve = Callable[..., TestClient]
RERANK = {"query": "red kettle", "documents": ["a kettle", "a bench"]}
BODIES = {"/v1/embeddings": {"input": "a kettle"}, "/v1/rerank": RERANK, "/v2/rerank": RERANK}
JSON = {"Content-Type": "application/json"}


def error(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"} and found["message"]
    return found


@pytest.mark.parametrize("path", BODIES)
def test_an_unknown_model_is_not_found(client: TestClient, path: str) -> None:
    answer = client.post(path, json={**BODIES[path], "model": "gpt-9"})
    assert answer.status_code == 404
    found = error(answer)
    assert found["code"] == "model_not_found" and "tiny-model" in found["message"]
    assert "gpt-9" not in found["message"]


def test_models_can_be_listed(client: TestClient) -> None:
    found = client.get("/v1/models").json()
    assert [one["id"] for one in found["data"]] == ["tiny-model", "tiny-model:query", "tiny-model:document"]
    assert client.get("/v1/models/tiny-model").json()["tasks"] == ["embedding", "reranking"]
    assert client.get("/v1/models/other").status_code == 404


def test_unknown_paths_and_methods(client: TestClient) -> None:
    assert client.get("/v1/nothing").status_code == 404 and error(client.get("/v1/nothing"))
    assert client.get("/v1/rerank").status_code == 405 and error(client.get("/v1/rerank"))


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"documents": ["a"]}, "query", "field required"),
        ({"query": "q"}, "documents", "field required"),
        ({"query": 3, "documents": ["a"]}, "query", "string"),
        ({"query": "q", "documents": "a"}, "documents", "list"),
        ({"query": "q", "documents": ["a", None]}, "documents[1]", "should be a string or an object"),
        ({"query": "q", "documents": ["a", {"body": "b"}]}, "documents[1].text", "field required"),
        ({"query": "q", "documents": [{"text": 1}]}, "documents[0].text", "string"),
        ({"query": "q", "documents": ["a"], "return_documents": "perhaps"}, "return_documents", "boolean"),
    ],
)
def test_a_message_names_the_field(client: TestClient, body: Any, field: str, words: str) -> None:
    found = error(client.post("/v1/rerank", json=body))
    assert found["param"] == field and found["message"].startswith(field) and words in found["message"]


def test_the_key(serve: Serve) -> None:
    client = serve(api_key="a secret")
    for wrong in (None, "Bearer wrong", "a secret", "Bearer a secre", "Bearer é"):
        encoded = {} if wrong is None else {"Authorization": wrong.encode()}
        for path, body in BODIES.items():
            answer = client.post(path, json=body, headers=encoded)
            assert answer.status_code == 401 and error(answer)["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers=encoded).status_code == 401
    given = {"Authorization": "Bearer a secret"}
    assert all(client.post(path, json=body, headers=given).status_code == 200 for path, body in BODIES.items())
    # Those that watch a server have no key, and see no text.
    assert all(client.get(path).status_code == 200 for path in ("/health", "/ready", "/metrics", "/"))


def test_a_name_of_somebody_else(serve: Serve) -> None:
    client = serve(hosts=frozenset({"localhost", "[::1]"}))
    for name in ("localhost", "localhost:8000", "LOCALHOST:1", "[::1]:8000", "[::1]", ""):
        assert client.get("/ready", headers={"Host": name}).status_code == 200, name
    for name in ("evil.example", "localhost.evil.example:8000", "127.0.0.1:8000", "[::2]:8000"):
        answer = client.post("/v1/search", headers={"Host": name}, json={"query": "a"})
        assert answer.status_code == 421 and "--allow-host" in answer.json()["error"]["message"], name
    assert serve().get("/ready", headers={"Host": "evil.example"}).status_code == 200


def test_a_key_from_a_file_ends_in_a_line(serve: Serve) -> None:
    client = serve(api_key="secret\n")
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize("place", ["mine/checkpoints/final", "mine", "."])
def test_a_run_is_called_by_its_folder(
    model: UniMoER, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine" if place == "." else tmp_path)
    monkeypatch.setattr(model, "checkpoint", Path(place))
    service = Service(model, Settings())
    service.close()
    assert service.names[0] == "mine"


def test_limits(serve: Serve) -> None:
    client = serve(max_texts=3, max_characters=20, max_body_bytes=2000)
    for body in ({"input": ["a"] * 4}, {"input": ["a", "b" * 21]}):
        assert client.post("/v1/embeddings", json=body).status_code == 400
    answer = client.post("/v1/rerank", json={"query": "q", "documents": ["a", "b" * 21]})
    assert error(answer)["message"] == "documents[1]: 21 characters; at most 20"
    answer = client.post("/v1/rerank", json={"query": "q" * 21, "documents": []})
    assert error(answer)["message"] == "query: 21 characters; at most 20"
    whole = json.dumps({"input": ["a" * 3000]}).encode()
    assert client.post("/v1/embeddings", content=whole, headers=JSON).status_code == 413

    def pieces() -> Any:
        yield from (whole[start : start + 500] for start in range(0, len(whole), 500))

    answer = client.post("/v1/embeddings", content=pieces(), headers=JSON)
    assert answer.status_code == 413 and error(answer)


def test_a_full_queue_is_429_and_says_when_to_come_back(serve: Serve) -> None:
    client = serve(queue_tokens=8)
    going, begun = threading.Event(), threading.Event()
    engine = client.app.state.service.engine  # type: ignore[attr-defined]

    def stand() -> None:
        begun.set()
        assert going.wait(30)

    engine.call(stand, 8)
    assert begun.wait(30)
    tokenised = mock.Mock()
    client.app.state.service._tokenise = tokenised  # type: ignore[attr-defined]
    for path, body in BODIES.items():
        answer = client.post(path, json=body)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert error(answer)["type"] == "rate_limit_error"
    # They are sent away before anything is done for them.
    tokenised.assert_not_called()
    del client.app.state.service._tokenise  # type: ignore[attr-defined]
    going.set()
    while engine.waiting:
        pass
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_request_ids(client: TestClient) -> None:
    assert client.get("/health", headers={"X-Request-ID": "mine-7"}).headers["x-request-id"] == "mine-7"
    found = {client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(found) == 3
    for bad in (b"a b", b"x" * 129, b"\xff"):
        assert len(client.get("/health", headers={b"X-Request-ID": bad}).headers["x-request-id"]) == 32
    assert client.post("/v1/rerank", json={}).headers["x-request-id"]


def test_logs_hold_no_text(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "unimoer.serving"):
        client.post("/v1/rerank", json={"query": "SECRET", "documents": ["SECRET one", "two"]})
        client.post("/v1/rerank", json={"query": "SECRET", "documents": ["SECRET", 3]})
        client.post("/v1/embeddings", json={"input": "SECRET", "model": "SECRET"})
        client.get("/SECRET?SECRET")
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "unimoer.serving"]
    assert not any("SECRET" in line for line in lines)
    first = json.loads(lines[0])
    assert first["route"] == "/v1/rerank" and first["status"] == 200 and first["texts"] == 2 and first["tokens"] > 0
    assert [json.loads(line)["status"] for line in lines] == [200, 400, 404, 404]


def test_metrics(serve: Serve) -> None:
    client = serve()
    client.post("/v1/rerank", json=RERANK)
    client.post("/v1/rerank", json={})
    text = client.get("/metrics").text
    assert 'unimoer_requests_total{route="/v1/rerank",status="200"} 1.0' in text
    assert 'unimoer_requests_total{route="/v1/rerank",status="400"} 1.0' in text
    assert 'unimoer_batch_rows_sum{task="reranking"} 2.0' in text
    assert "unimoer_queue_tokens 0.0" in text


def test_ready_until_told_to_stop(serve: Serve) -> None:
    client = serve()
    assert client.get("/ready").json() == {"status": "ready", "model": "tiny-model"}
    client.app.state.draining = True  # type: ignore[attr-defined]
    assert client.get("/ready").status_code == 503
    # What is asked until then is answered.
    assert client.get("/health").status_code == client.post("/v1/rerank", json=RERANK).status_code == 200


def test_an_error_of_the_server_is_500_without_details(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()

    def broken(*args: Any, **settings: Any) -> Any:
        raise RuntimeError("SECRET")

    monkeypatch.setattr("unimoer.serving.engine.encode", broken)
    answer = client.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 500 and error(answer)["type"] == "server_error" and "SECRET" not in answer.text
    assert answer.headers["x-request-id"]
    # It goes on.
    assert client.post("/v1/rerank", json=RERANK).status_code == 200


def test_a_server_that_cannot_compute_is_not_healthy(serve: Serve) -> None:
    client = serve()
    assert client.get("/health").json() == {"status": "ok"}
    client.app.state.service.engine.close()  # type: ignore[attr-defined]
    assert client.get("/health").status_code == 503
    assert client.post("/v1/rerank", json=RERANK).status_code == 503


def test_a_client_that_leaves_frees_its_place(model: UniMoER) -> None:
    service = Service(model, Settings())
    app = create_app(service, Metrics())
    going, begun = threading.Event(), threading.Event()

    def stand() -> None:
        begun.set()
        assert going.wait(30)

    service.engine.call(stand, 0)
    assert begun.wait(30)
    body = json.dumps({"input": ["a kettle"] * 3}).encode()
    sent: list[int] = []

    async def ask() -> None:
        leave = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/embeddings", "raw_path": b"/v1/embeddings", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json")], "client": ("test", 1), "server": ("test", 80),
        }  # fmt: skip
        asked = asyncio.create_task(app(scope, receive, send))
        while not service.engine.waiting:
            await asyncio.sleep(0.01)
        leave.set()
        await asyncio.wait_for(asked, 10)

    asyncio.run(ask())
    assert sent == [499] and service.engine.waiting == 0
    going.set()
    service.close()


def test_the_page_comes_from_this_server_alone(client: TestClient) -> None:
    page = client.get("/")
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'self'" in page.headers["content-security-policy"]
    )
    for name in ("page.css", "page.js"):
        assert name in page.text and client.get(f"/{name}").status_code == 200
    assert "http://" not in page.text and "https://" not in page.text


@pytest.mark.parametrize(
    ("adapter", "experts"),
    [
        ({}, 0),
        ({"experts": {"embedding": 4, "reranking": 4}, "router": {"type": "hard"}}, 2),
        ({"experts": {"embedding": 4, "reranking": 4, "shared": 8}, "router": {"type": "sparsegen"}}, 3),
        (
            {
                "experts": {"a": 4, "b": 4},
                "router": {"type": "sparsegen", "granularity": "token", "scope": "projection"},
            },
            2,
        ),
    ],
)
def test_routing_by_layer(serve: Serve, base: Path, tmp_path: Path, adapter: Any, experts: int) -> None:
    save_model(tiny.build(base, noise=0.3, adapter={"rank": 8, "alpha": 16} | adapter), tmp_path / "m")
    client = serve(model=UniMoER.load(tmp_path / "m", device="cpu"))
    for body in ({"query": "red kettle"}, RERANK | {"document": "a kettle"}):
        found = client.post("/v1/routing", json=body).json()
        assert len(found["experts"]) == experts and bool(found["layers"]) == bool(experts)
        for layer in found["layers"]:
            assert sum(layer["weights"].values()) == pytest.approx(1, abs=1e-4)


def mutants(count: int) -> list[bytes]:
    """Bodies that no client should send."""
    draw = random.Random(7)
    strange: list[Any] = [
        None, True, 0, -1, 1e308, 2**70, "", "x", [], [[]], {}, {"text": {}}, [None], [1, "a"], ["a", ["b"]],
        [[1], ["a"]], "\ud800", ["\udfff"], {"text": "\ud800"}, [[True]], [[-1]], [[2**40]], [1.5], "NaN", [{}],
    ]  # fmt: skip
    fields = ["query", "documents", "texts", "input", "top_n", "dimensions", "encoding_format", "model", "instruction"]
    made = [
        b"", b"null", b"[]", b"3", b'"a"', b"{", b"{]", b'{"query": ', b"\xff\xfe", b"\x00", b"\x80" * 50, b"<xml/>",
        b"[" * 100_000, b'{"a":' * 50_000, b"a=b&c=d", '{"input": "ü"}'.encode("latin-1"), b'{"input": "\\x"}',
        '{"query": "q"'.encode("utf-16"), b'{"query": NaN, "documents": [Infinity]}',
        b'{"query": "q", "query": 1, "documents": [2]}',
    ]  # fmt: skip
    while len(made) < count:
        # At least one of the fields that all need is of no use.
        body = {draw.choice(fields): draw.choice(strange) for _ in range(draw.randint(1, 4))}
        body |= {"input": draw.choice([None, 3, {}, ["a", 1], [["a"]]]), "documents": draw.choice([None, "a", [1], {}])}
        made.append(json.dumps(body).encode())
    return made


def test_200_malformed_bodies_get_a_clear_4xx_and_the_server_stays_up(client: TestClient) -> None:
    for path in BODIES:
        for body in mutants(200):
            answer = client.post(path, content=body, headers=JSON)
            assert 400 <= answer.status_code < 500, (path, body[:80], answer.text)
            assert error(answer)["type"] == "invalid_request_error"
    for path, body in BODIES.items():
        assert client.post(path, json=body).status_code == 200
        # Not JSON by its own words.
        assert 400 <= client.post(path, content=b"query=q", headers={"Content-Type": "text/plain"}).status_code < 500
