"""The endpoint generator against a real server here: what it sends, what it tries again, where it gives up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from unimoer.config.rag import EndpointGeneratorConfig
from unimoer.errors import UserError
from unimoer.rag import endpoint
from unimoer.rag.endpoint import EndpointGenerator, retry_after

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

Reply = tuple[int, dict[str, str], Any]
"""Status, headers, and what becomes JSON; bytes as they are; None hangs up without a word."""
GOOD: Reply = (200, {}, {"choices": [{"message": {"role": "assistant", "content": "The kettle."}}]})


class Server:
    """Answers with the replies it was given, one a request, and keeps the requests."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.pause = 0.0
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                status, headers, content = outer.replies.pop(0)
                time.sleep(outer.pause)
                if content is None:
                    self.close_connection = True
                    return
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for key, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that does not wait is what one of the tests is about.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    found = Server()
    yield found
    found.close()


def ask(server: Server, *replies: Reply, **config: Any) -> str:
    server.replies = list(replies)
    content = {"type": "endpoint", "url": server.url, "model": "m", "retries": 2} | config
    return EndpointGenerator(EndpointGeneratorConfig.model_validate(content)).answer("Where?")


@pytest.fixture
def refused(server: Server) -> Callable[..., str]:
    def run(*replies: Reply, **config: Any) -> str:
        with pytest.raises(UserError) as caught:
            ask(server, *replies, **config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


def test_a_message_becomes_a_chat_and_its_reply_the_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " secret\n")
    assert ask(server, GOOD, key_variable="MY_KEY", parameters={"temperature": 0, "seed": 3}) == "The kettle."
    [(path, headers, body)] = server.seen
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    turns = [{"role": "user", "content": "Where?"}]
    assert body == {"model": "m", "messages": turns, "temperature": 0, "seed": 3}


def test_without_a_key_there_is_no_header(server: Server) -> None:
    ask(server, GOOD, url=server.url + "/")
    assert server.seen[0][0] == "/v1/chat/completions" and "authorization" not in server.seen[0][1]


def test_a_busy_server_is_asked_again_when_it_says(server: Server) -> None:
    started = time.perf_counter()
    assert ask(server, (429, {"Retry-After": "1"}, {}), (503, {}, b"busy"), GOOD) == "The kettle."
    assert time.perf_counter() - started >= 1.0 and len(server.seen) == 3


def test_a_broken_connection_is_tried_again(server: Server) -> None:
    assert ask(server, (0, {}, None), GOOD) == "The kettle."
    half = (200, {"Content-Length": "400"}, b'{"choices"')
    assert ask(server, half, GOOD) == "The kettle."


def test_it_gives_up_after_so_many_tries(server: Server, refused: Callable[..., str]) -> None:
    busy: Reply = (500, {}, {"error": {"message": "out of\nmemory"}})
    assert "/v1/chat/completions: tried 3 times: 500 Internal Server Error: out of memory" in refused(*[busy] * 3)
    assert len(server.seen) == 3
    assert "tried 3 times: no answer: " in refused(*[(0, {}, None)] * 3)


def test_a_server_that_is_slow_or_not_there(server: Server, refused: Callable[..., str]) -> None:
    assert "tried 1 times: no answer: [Errno 111] Connection refused" in refused(url="http://127.0.0.1:9/v1", retries=0)
    server.pause = 0.5
    assert "tried 1 times: no answer: timed out" in refused(GOOD, timeout=0.1, retries=0)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_mistake_is_not_tried_again(server: Server, refused: Callable[..., str], status: int) -> None:
    line = refused((status, {}, {"error": {"message": "no such model", "type": "x"}}))
    assert f": {status} " in line and line.endswith(": no such model") and len(server.seen) == 1


def test_a_key_does_not_follow_a_redirect(
    server: Server, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    other = Server()
    other.replies = [GOOD]
    for status in (302, 307):
        assert f": {status} " in refused((status, {"Location": other.url}, b""), key_variable="MY_KEY")
    assert other.seen == []
    other.close()


def test_a_wait_that_is_too_long_ends_the_run(refused: Callable[..., str]) -> None:
    line = refused((429, {"Retry-After": "3600"}, {"error": "quota"}), longest_wait=30)
    assert "asks to wait 3600 s, and generator.longest_wait is 30; the same command goes on later" in line


@pytest.mark.parametrize("content", [b"<html>", b"[]", {"choices": []}, {"choices": [{"text": "x"}]}, {"error": "x"}])
def test_what_is_no_chat_completion_is_one_line(refused: Callable[..., str], content: Any) -> None:
    assert "answered without choices[0].message.content: " in refused((200, {}, content))


def test_a_refusal_is_an_empty_answer(server: Server) -> None:
    assert ask(server, (200, {}, {"choices": [{"message": {"content": None}}]})) == ""


@pytest.mark.parametrize(("value", "line"), [("", "MY_KEY is not set"), ("a\nb", "MY_KEY holds what no header can")])
def test_a_key_that_there_is_not(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, value: str, line: str
) -> None:
    monkeypatch.setenv("MY_KEY", value)
    assert refused(key_variable="MY_KEY").startswith(f"generator.key_variable: {line}")


def test_retry_after_is_a_number_or_a_date() -> None:
    def read(value: str | None) -> float | None:
        headers = Message()
        if value is not None:
            headers["Retry-After"] = value
        return retry_after(headers)

    assert read("2.5") == 2.5
    assert read("-3") == read("nan") == 0.0
    assert read(None) is read("") is read("soon") is None
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert read(format_datetime(later, usegmt=True)) == pytest.approx(30, abs=2)
    assert read(format_datetime(later.replace(tzinfo=None))) == pytest.approx(30, abs=2)
    assert read("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
