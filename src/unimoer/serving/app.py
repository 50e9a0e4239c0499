"""The HTTP application: routes in the shapes of OpenAI, Jina and Cohere over one `Service`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from unimoer import __version__
from unimoer.serving import errors
from unimoer.serving.guard import CLIENT_GONE, Guard
from unimoer.serving.observe import Metrics
from unimoer.serving.requests import EmbeddingRequest, RerankRequest, RoutingRequest, SearchRequest
from unimoer.serving.service import RefusedError, Service, Used

Found = TypeVar("Found")
PAGE = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def create_app(service: Service, metrics: Metrics) -> FastAPI:
    """An ASGI application. It closes the service, which finishes what was accepted, when it is shut down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="UniMoER",
        version=__version__,
        description="Embeddings and reranking by one model.",
        lifespan=lifespan,
        responses=errors.RESPONSES,
        docs_url=None,
        redoc_url=None,
    )
    app.state.draining = False
    app.state.service = service
    app.add_middleware(Guard, settings=service.settings, metrics=metrics)
    errors.handle_errors(app)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Vectors of texts, as OpenAI has it."""
        named = service.named(body.model)
        texts = _texts(service, body)
        service.check("input", texts)
        size = service.model.dimension
        if body.dimensions is not None and body.dimensions > size:
            raise RefusedError(400, f"dimensions: {body.dimensions}; the model has {size}", param="dimensions")
        kind = body.input_type or named or "document"
        found = await _unless_gone(request, service.embed(texts, kind, body.instruction))
        if found is None:
            return Response(status_code=CLIENT_GONE)
        vectors, used = found
        usage = _usage(request, used, len(texts))
        form: Callable[[np.ndarray], Any] = _base64 if body.encoding_format == "base64" else _numbers
        data = [
            {"object": "embedding", "index": index, "embedding": form(vector)}
            for index, vector in enumerate(_shorter(vectors, body.dimensions))
        ]
        return JSONResponse({"object": "list", "data": data, "model": body.model or service.name, "usage": usage})

    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Documents by relevance to a query, best first, as Jina and Cohere have it."""
        service.named(body.model)
        texts = [document if isinstance(document, str) else document.text for document in body.documents]
        if service.model.model.prompter.is_blank(body.query):
            raise RefusedError(400, "query: is empty", param="query")
        service.check("query", [body.query])
        service.check("documents", texts)
        found = await _unless_gone(request, service.rerank(body.query, texts, body.instruction))
        if found is None:
            return Response(status_code=CLIENT_GONE)
        relevance, used = found
        usage = _usage(request, used, len(texts))
        # Equal documents keep their order.
        order = np.argsort(-relevance, kind="stable")[: body.top_n]
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": float(relevance[index])} for index in order.tolist()
        ]
        if body.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        version = "2" if request.url.path.startswith("/v2/") else "1"
        meta = {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
        content = {"id": uuid4().hex, "model": body.model or service.name, "results": results, "usage": usage}
        return JSONResponse({**content, "meta": meta})

    # Without a version as vLLM has it.
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        app.post(path, operation_id=path[1:].replace("/", "_"))(rerank)

    @app.post("/v1/search")
    async def search(body: SearchRequest, request: Request) -> Response:
        """The best documents of the index, with the scores of both stages."""
        service.named(body.model)
        service.check("query", [body.query])
        found = await _unless_gone(request, service.search(body.query, body.k, body.retrieve, body.rerank))
        if found is None:
            return Response(status_code=CLIENT_GONE)
        left_out = {"text"} if not body.return_documents else set()
        hits = [{key: value for key, value in asdict(hit).items() if key not in left_out} for hit in found.hits]
        return JSONResponse({"hits": hits, "milliseconds": found.milliseconds})

    @app.post("/v1/routing")
    async def routing(body: RoutingRequest, request: Request) -> Response:
        """How much of each expert every layer uses for a query, or for a query with a document."""
        service.named(body.model)
        service.check("query", [body.query])
        service.check("document", [body.document or ""])
        found = await _unless_gone(request, service.routing(body.query, body.document))
        return Response(status_code=CLIENT_GONE) if found is None else JSONResponse(found)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Names that requests can ask for; what this server can do."""
        return {"object": "list", "data": [_model(service, name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        service.named(name)
        return _model(service, name)

    @app.get("/health")
    async def health() -> Response:
        """Whether the process answers and can compute; if not, it must be started again."""
        if not service.engine.alive:
            return errors.response(503, "the thread that computes has ended; its log has more", code="broken")
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Whether it takes requests: no longer, once it has been told to stop."""
        if app.state.draining:
            return errors.response(503, "the server is stopping", code="stopping")
        return JSONResponse({"status": "ready", "model": service.name})

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """In Prometheus' text form."""
        metrics.waiting.set(service.engine.waiting)
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    files = resources.files("unimoer.serving") / "page"
    for name, kind in PAGE.items():
        content = (files / (name or "page.html")).read_bytes()
        app.get(f"/{name}", include_in_schema=False)(_file(content, kind))
    return app


def _file(content: bytes, kind: str) -> Any:
    async def read() -> Response:
        return Response(content, media_type=kind, headers={"Content-Security-Policy": POLICY})

    return read


def _model(service: Service, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "unimoer"}
    return found | {
        "tasks": [task.value for task in service.model.tasks],
        "documents": None if service.index is None else len(service.index),
    }


def _texts(service: Service, body: EmbeddingRequest) -> list[str]:
    """The request's texts; token ids as text, if it is known whose they are."""
    given = body.input
    if isinstance(given, str):
        given = [given]
    if not given:
        raise RefusedError(400, "input: is empty", param="input")
    if isinstance(given[0], str):
        texts = [text for text in given if isinstance(text, str)]
    else:
        rows = [given] if isinstance(given[0], int) else given
        if service.decode is None:
            raise RefusedError(
                400,
                "input: token ids, and this server does not know of which tokenizer. Send text (LangChain's "
                "OpenAIEmbeddings: check_embedding_ctx_length=False), or start the server with --token-ids",
                param="input",
                code="token_ids_refused",
            )
        service.check_number("input", len(rows))
        try:
            texts = [service.decode([token for token in row if isinstance(token, int)]) for row in rows]
        except ValueError as error:
            raise RefusedError(400, f"input: {error}", param="input") from None
    for place, text in enumerate(texts):
        # Control tokens and NUL never reach the model: a text of nothing else is none.
        if not service.model.model.prompter.clean(text):
            where = "input" if len(texts) == 1 else f"input[{place}]"
            raise RefusedError(400, f"{where}: is empty", param="input")
    return texts


def _shorter(vectors: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or size == vectors.shape[1]:
        return vectors
    cut = vectors[:, :size]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _numbers(vector: np.ndarray) -> list[float]:
    found: list[float] = vector.tolist()
    return found


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _usage(request: Request, used: Used, texts: int) -> dict[str, int]:
    """For the answer, and for the log."""
    request.scope["state"]["used"] = {"texts": texts, "tokens": used.tokens, "shortened": used.shortened}
    return {"prompt_tokens": used.tokens, "total_tokens": used.tokens, "shortened": used.shortened}


async def _unless_gone(request: Request, work: Awaitable[Found]) -> Found | None:
    """The result; None when the client has left before, and then its place in the queue is free."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
