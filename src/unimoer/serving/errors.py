"""Every error as OpenAI's clients read it, `{"error": {"message", "type", "param", "code"}}`, without a user's text."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from unimoer.serving.engine import ClosedError, QueueFullError
from unimoer.serving.service import RefusedError

log = logging.getLogger("unimoer.serving")

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
UNSHOWN = frozenset({"str", "list[str]", "list[constrained-int]", "list[list[constrained-int]]", "TextObject", "body"})
"""Of a place in a body: the branches of a union, which no client has written."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every status from 400 on comes with."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "Something in the request is wrong; the message names the field.",
        401: "The API key is missing or wrong.",
        404: "There is no such model or path.",
        413: "The body is too large.",
        429: "The queue is full; `Retry-After` says for how many seconds.",
        503: "The server is stopping, or its index cannot be read.",
    }.items()
}


def response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, headers)


def handle_errors(app: FastAPI) -> None:
    """Register the answers to everything that can be raised."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return response(error.status, error.message, param=error.param, code=error.code)

    @app.exception_handler(QueueFullError)
    async def busy(request: Request, error: QueueFullError) -> JSONResponse:
        wait = {"Retry-After": str(math.ceil(error.seconds))}
        return response(429, f"the queue is full; {error}", code="queue_full", headers=wait)

    @app.exception_handler(ClosedError)
    async def closed(request: Request, error: ClosedError) -> JSONResponse:
        return response(503, "the server is stopping", code="stopping", headers={"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        place, message = _first(error)
        return response(400, f"{place}: {message}" if place else message, param=place or None, code="invalid_value")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return response(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _first(error: RequestValidationError) -> tuple[str, str]:
    """The field that is wrong, as `documents[3].text`, and what is wrong with it."""
    errors = error.errors()
    # Of a union all branches complain; the one that went deepest is the one that was meant.
    chosen = max(errors, key=lambda one: (sum(isinstance(part, int) for part in one["loc"]), len(one["loc"])))
    if chosen["type"] == "json_invalid":
        return "", "the body is not valid JSON"
    place = ""
    for part in chosen["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif _is_field(part):
            place += f".{part}" if place else str(part)
    kinds = sorted({_words(one) for one in errors if _same(one, chosen)})
    return place, kinds[0] + "".join(f" or {kind.removeprefix('should be ')}" for kind in kinds[1:])


def _is_field(part: str) -> bool:
    return part not in UNSHOWN and not part.startswith(("function-", "nullable"))


def _words(error: dict[str, Any]) -> str:
    found = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    found = found.replace("a valid dictionary or object to extract fields from", "an object").replace("a valid ", "a ")
    return found[0].lower() + found[1:]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def plain(found: dict[str, Any]) -> list[Any]:
        return [part for part in found["loc"] if isinstance(part, int) or _is_field(part)]

    return plain(one) == plain(other)
