"""Around every request: its id, the host it names, the API key, the size of its body; then the log and the metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimoer.serving import errors
from unimoer.serving.observe import Metrics
from unimoer.serving.settings import Settings

log = logging.getLogger("unimoer.serving")

GUARDED = ("/v1/", "/v2/", "/rerank")
"""Paths that need the key."""
PLAIN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
PORT = re.compile(rb":\d*$")
CLIENT_GONE = 499
"""Logged for a client that did not wait; nobody reads the answer."""


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        # A key from a file ends in a line's end.
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().strip().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if PLAIN_ID.fullmatch(given) else uuid4().hex.encode()
        started = time.perf_counter()
        status, begun = 500, False

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id.decode()
        try:
            if refusal := self._refusal(scope["path"], headers):
                await refusal(scope, receive, answer)
            else:
                await self.app(scope, self._measured(receive), answer)
        except Exception:
            log.exception("a request failed", extra={"request_id": request_id.decode()})
            if not begun:
                await errors.response(500, "an error of the server; its log has more")(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            # Of an unknown path not even the path: it may hold anything.
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.request(route, status, seconds)
            log.info(
                "request",
                extra={
                    "request_id": request_id.decode(),
                    "method": scope["method"] if scope["method"].isalpha() else "?",
                    "route": route,
                    "status": status,
                    "milliseconds": round(1000 * seconds, 1),
                    **scope["state"].get("used", {}),
                },
            )

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ASGIApp | None:
        # Only browsers can be made to ask for another's name, and they always say it.
        asked = PORT.sub(b"", headers.get(b"host", b"")).decode("latin-1").lower()
        if self.settings.hosts and asked and asked not in self.settings.hosts:
            return errors.response(421, "this server has another name; --allow-host adds one", code="unknown_host")
        if self._key is not None and path.startswith(GUARDED):
            given = headers.get(b"authorization", b"")
            scheme, _, token = given.partition(b" ")
            # In constant time, so that a guess tells nothing by how long it takes.
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._key):
                hint = {"WWW-Authenticate": "Bearer"}
                return errors.response(401, "the API key is missing or wrong", code="invalid_api_key", headers=hint)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            return errors.response(413, self._too_large, code="body_too_large")
        return None

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self.settings.max_body_bytes} bytes"

    def _measured(self, receive: Receive) -> Receive:
        """A body that comes in pieces does not say its length first, and one that never ends would hold up the end."""
        seen, whole = 0, False

        async def measured() -> Message:
            nonlocal seen, whole
            try:
                message = await (receive() if whole else asyncio.wait_for(receive(), self.settings.body_seconds))
            except TimeoutError:
                whole = True
                raise HTTPException(408, f"the body did not come in {self.settings.body_seconds:g} s") from None
            whole = whole or not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self.settings.max_body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return measured
