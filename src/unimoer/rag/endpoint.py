"""Answers from any server that speaks OpenAI's chat completions, one request at a time."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from unimoer.config.rag import EndpointGeneratorConfig
from unimoer.errors import UserError

AGAIN = (429, 500, 502, 503, 504)
FIRST_WAIT = 0.5
"""Seconds before the first retry; doubled before every other one."""
_SHOWN = 300
"""Characters of a server's own words in an error."""


class EndpointGenerator:
    """Posts `{model, messages, ...}` to URL/chat/completions.

    429, 500, 502, 503, 504 and broken connections are tried again, after `Retry-After` where the server says it.
    Redirects are refused: the key would go to another host.
    """

    local = False

    def __init__(self, config: EndpointGeneratorConfig) -> None:
        """Raises: UserError where the variable that holds the key is not set."""
        self.config = config
        self.url = config.url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if config.key_variable is not None:
            key = os.environ.get(config.key_variable, "").strip()
            if not key:
                raise UserError(f"generator.key_variable: {config.key_variable} is not set in the environment")
            if not key.isascii() or not key.isprintable():
                raise UserError(f"generator.key_variable: {config.key_variable} holds what no header can hold")
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = urllib.request.build_opener(_NoRedirects)

    def answer(self, message: str) -> str:
        turns = [{"role": "user", "content": message}]
        content = {"model": self.config.model, "messages": turns, **self.config.parameters}
        reply = self._post(json.dumps(content).encode())
        try:
            said = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(f"{self.url}: answered without choices[0].message.content: {_short(reply)}") from None
        # Null is how a refusal comes.
        return said if isinstance(said, str) else ""

    def _post(self, content: bytes) -> bytes:
        for attempt in range(self.config.retries + 1):
            request = urllib.request.Request(self.url, content, self._headers)
            asked: float | None = None
            try:
                with self._opener.open(request, timeout=self.config.timeout) as response:
                    reply: bytes = response.read()
                    return reply
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}: {_body(error)}"
                if error.code not in AGAIN:
                    raise UserError(f"{self.url}: {problem}") from None
                asked = retry_after(error.headers)
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                problem = f"no answer: {_short(str(reason).encode()) or type(error).__name__}"
            wait = FIRST_WAIT * 2**attempt if asked is None else asked
            if asked is not None and asked > self.config.longest_wait:
                raise UserError(
                    f"{self.url}: asks to wait {asked:.0f} s, and generator.longest_wait is "
                    f"{self.config.longest_wait:.0f}; the same command goes on later ({problem})"
                )
            if attempt < self.config.retries:
                time.sleep(min(wait, self.config.longest_wait))
        raise UserError(f"{self.url}: tried {self.config.retries + 1} times: {problem}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None lets the redirect come back as the error that it is."""


def retry_after(headers: Message) -> float | None:
    """Seconds that a server asks to wait, given as a number or as a date; None where it says nothing sensible."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    # Neither NaN nor the past.
    return seconds if seconds > 0.0 else 0.0


def _body(error: urllib.error.HTTPError) -> str:
    """What came with a status; the connection may break once more meanwhile."""
    with error, suppress(OSError, http.client.HTTPException):
        return _short(error.read(1 << 16))
    return ""


def _short(content: bytes) -> str:
    """One line of what a server says: its own message where it has the usual form."""
    text = content.decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(text.split())[:_SHOWN]
