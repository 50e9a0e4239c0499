"""The server as clients meet it: the packages that people use, and its end under load."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings

from served import Server, server
from unimoer import UniMoER
from unimoer.cli import main

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
KEY = "a secret"
QUERY = "find my red kettle"
DOCUMENTS = ["The red kettle stands in the corner.", "A bench.", "", "The golden oven is very old."]


@pytest.fixture(scope="module")
def running(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(checkpoint, tmp_path_factory.mktemp("log") / "log", "--token-ids", "own", key=KEY) as found:
        yield found


def test_openai(running: Server, model: UniMoER) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY)
    # It asks for base64 where nothing is said, and unpacks it.
    given = client.embeddings.create(model="tiny-model", input=[DOCUMENTS[0], DOCUMENTS[1]])
    np.testing.assert_allclose(
        [one.embedding for one in given.data], model.encode(DOCUMENTS[:2], "document"), atol=1e-5
    )
    assert given.usage.total_tokens > 0
    given = client.embeddings.create(model="tiny-model:query", input=QUERY, dimensions=5, encoding_format="float")
    np.testing.assert_allclose(given.data[0].embedding, model.encode([QUERY], "query", dim=5)[0], atol=1e-5)
    assert "tiny-model" in [one.id for one in client.models.list()]
    with pytest.raises(openai.NotFoundError, match="no model of that name"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match="input: is empty"):
        client.embeddings.create(model="tiny-model", input="")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong").models.list()


def test_cohere(running: Server, model: UniMoER) -> None:
    expected = [one.index for one in model.rerank(QUERY, [text for text in DOCUMENTS if text])]
    client = cohere.ClientV2(api_key=KEY, base_url=running.url)
    given = client.rerank(model="tiny-model", query=QUERY, documents=DOCUMENTS, top_n=4)
    assert [one.index for one in given.results] == [(0, 1, 3)[place] for place in expected] + [2]
    assert given.results[-1].relevance_score == 0
    older = cohere.Client(api_key=KEY, base_url=running.url)
    found = older.rerank(
        model="tiny-model", query=QUERY, documents=[{"text": text} for text in DOCUMENTS], return_documents=True
    )
    assert [one.index for one in found.results] == [one.index for one in given.results]
    assert found.results[0].document is not None
    assert found.results[0].document.text == DOCUMENTS[found.results[0].index]


def test_langchain(
    running: Server, checkpoint: Path, model: UniMoER, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"model": "tiny-model", "base_url": f"{running.url}/v1", "api_key": KEY}
    plain = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    np.testing.assert_allclose(plain.embed_documents(DOCUMENTS[:2]), model.encode(DOCUMENTS[:2], "document"), atol=1e-5)
    # As it comes, it sends ids of OpenAI's tokenizer, whose vocabulary it fetches: here one of bytes stands for it.
    letters = tiktoken.Encoding(
        "letters", pat_str=".", mergeable_ranks={bytes([value]): value for value in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: letters)
    refused = pytest.raises(openai.BadRequestError, match=r"check_embedding_ctx_length=False.*--token-ids")
    # A server that was not told whose they are refuses them, and says what to do on either side.
    with server(checkpoint, tmp_path / "log") as other, refused:
        OpenAIEmbeddings(**settings | {"base_url": f"{other.url}/v1"}).embed_documents(DOCUMENTS[:2])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # Open WebUI's external reranker.
        ("/v1/rerank", {"top_n": 4}),
        # LiteLLM, by its providers for Jina, Cohere and vLLM.
        ("/v1/rerank", {"top_n": 4, "return_documents": True}),
        ("/v2/rerank", {"max_tokens_per_doc": 4096}),
        ("/rerank", {"rank_fields": None, "user": "somebody"}),
    ],
)
def test_shapes_of_gateways(running: Server, path: str, body: dict[str, object]) -> None:
    body = {"model": "tiny-model", "query": QUERY, "documents": DOCUMENTS} | body
    answer = httpx.post(running.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    found = answer.json()
    assert {one["index"] for one in found["results"]} == {0, 1, 2, 3}
    assert all(isinstance(one["relevance_score"], float) for one in found["results"])
    assert found["meta"]["billed_units"]["search_units"] == 1 and found["id"] and found["usage"]["total_tokens"] > 0


def test_stopping_under_load_answers_all_that_was_accepted(checkpoint: Path, tmp_path: Path) -> None:
    """Every request that is in the queue when the signal comes is answered, once."""
    body = json.dumps({"query": QUERY, "documents": [f"kettle {word}" for word in range(200)]})
    answers: dict[str, tuple[int, int]] = {}
    sent = [threading.Event() for _ in range(16)]
    with server(checkpoint, tmp_path / "log", "--batch-tokens", "16") as found:

        def ask(number: int) -> None:
            connection = http.client.HTTPConnection(found.url.removeprefix("http://"), timeout=120)
            headers = {"X-Request-ID": str(number), "Content-Type": "application/json"}
            connection.request("POST", "/v1/rerank", body, headers)
            sent[number].set()
            answer = connection.getresponse()
            answers[answer.headers["x-request-id"]] = (answer.status, len(json.loads(answer.read())["results"]))

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(len(sent))]
        for client in clients:
            client.start()
        assert all(one.wait(30) for one in sent)
        # What was sent is read in milliseconds: the loop that reads is not the thread that computes.
        time.sleep(0.5)
        assert len(answers) < len(sent) / 2, "or little would be under way"
        found.process.send_signal(signal.SIGTERM)
        assert found.process.wait(120) in (0, -signal.SIGTERM)
        for client in clients:
            client.join(60)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{found.url}/ready")
    assert answers == {str(number): (200, 200) for number in range(len(sent))}
    lines = [json.loads(line) for line in found.log.read_text().splitlines() if '"route": "/v1/rerank"' in line]
    assert sorted(line["request_id"] for line in lines) == sorted(answers)
    assert {line["status"] for line in lines} == {200}


def test_a_body_that_never_ends_does_not_hold_up_the_end(checkpoint: Path, tmp_path: Path) -> None:
    with server(checkpoint, tmp_path / "log", "--body-seconds", "1") as found:
        address, port = found.url.removeprefix("http://").split(":")
        with socket.create_connection((address, int(port)), timeout=30) as half:
            half.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.3)
            found.process.send_signal(signal.SIGTERM)
            assert found.process.wait(30) in (0, -signal.SIGTERM)
            assert b" 408 " in half.recv(1000).split(b"\r\n")[0] + b" "


def test_mistakes_are_one_line(
    checkpoint: Path, running: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = running.url.rsplit(":", 1)[1]
    for options, words in (
        ([str(checkpoint), "--port", port], "choose another --port"),
        ([], "name a model"),
        ([str(tmp_path / "none")], "none"),
        ([str(checkpoint), "--token-ids", str(tmp_path / "none")], "no tokenizer can be loaded"),
        ([str(checkpoint), "--index", str(tmp_path / "none")], "no index here"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["serve", *options])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("unimoer: ") and words in said and said.count("\n") == 1


def test_the_code_of_the_page_runs(checkpoint: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3 and all("smollm2-135m-search" in block for block in blocks)
    with server(checkpoint, tmp_path / "log", "--name", "smollm2-135m-search") as found:
        for block in blocks:
            exec(block, {"url": found.url})
