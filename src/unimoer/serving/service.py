"""What the server does, apart from HTTP: names, limits, tokenising, the queue, and the index if there is one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from unimoer.errors import UserError
from unimoer.library import UniMoER
from unimoer.library.hits import timed
from unimoer.library.model import Kind
from unimoer.model.scoring import filled, score_candidates, with_blank
from unimoer.runs.folder import run_of
from unimoer.search import Hit, Hits, SearchIndex
from unimoer.search.index import Retrieve
from unimoer.search.snapshot import Retrieved, arrange
from unimoer.serving.engine import Engine, Observe
from unimoer.serving.routing import routing_by_layer
from unimoer.serving.settings import DEFAULT_BATCH_TOKENS, OTHER_BATCH_TOKENS, Settings
from unimoer.serving.token_ids import Decode, decoder
from unimoer.types import Task

log = logging.getLogger("unimoer.serving")
Made = TypeVar("Made")

CHARACTERS = 4
"""Of a token, about."""
LOOK_UP = 16
"""Tokens that a look-up in the index counts as, about a short query's."""


class RefusedError(Exception):
    """A request that cannot be answered as it is: an HTTP status, what is wrong, and which field."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True, slots=True)
class Used:
    """What a request took."""

    tokens: int
    """That the model read, prompts included; of equal texts once each."""
    shortened: int
    """Texts that were cut to the model's limit."""


class Service:
    """One model, its queue, and an index of documents if there is one."""

    def __init__(
        self, model: UniMoER, settings: Settings, *, index: SearchIndex | None = None, observe: Observe | None = None
    ) -> None:
        self.model, self.settings = model, settings
        # Of a run its folder, not that of the checkpoint in it.
        self.name = settings.name or (run_of(model.checkpoint) or model.checkpoint.resolve()).name
        head = model.model.config.reranking
        self.reads_lists = head.kind.reads_lists
        self.decode: Decode | None = None
        if settings.token_ids is not None:
            self.decode = decoder(settings.token_ids, model.model.tokenizer)
        default = DEFAULT_BATCH_TOKENS.get(model.model.device.type, OTHER_BATCH_TOKENS)
        self.engine = Engine(
            model.model,
            batch_tokens=settings.batch_tokens or default,
            queue_tokens=settings.queue_tokens,
            observe=observe,
        )
        # A fast tokenizer keeps its truncation in itself: one thread at a time.
        self._tokenising = ThreadPoolExecutor(1, "tokenise")
        self.index = index

    @property
    def names(self) -> list[str]:
        """Under which the model can be asked for; those with a kind are for clients that cannot say it otherwise."""
        kinds = (":query", ":document") if Task.EMBEDDING in self.model.tasks else ()
        return [self.name, *(self.name + kind for kind in kinds)]

    def named(self, name: str | None) -> Kind | None:
        """The kind of text that a model's name tells, if it does.

        Raises:
            RefusedError: there is no such model.
        """
        if name is None or name == self.name:
            return None
        if name not in self.names:
            known = ", ".join(self.names)
            raise RefusedError(404, f"no model of that name; there is {known}", param="model", code="model_not_found")
        return "query" if name.endswith(":query") else "document"

    def can(self, task: Task) -> None:
        """Raises: RefusedError when the model was not trained for it."""
        if task not in self.model.tasks:
            raise RefusedError(400, f"this model was not trained for {task}", param="model", code="model_not_supported")

    def check_number(self, name: str, number: int) -> None:
        """Raises: RefusedError when there are more than one request may have."""
        if number > self.settings.max_texts:
            most = self.settings.max_texts
            raise RefusedError(400, f"{name}: {number} of them; at most {most} in one request", param=name)

    def check(self, name: str, texts: Sequence[str]) -> None:
        """Number and length of texts.

        Raises:
            RefusedError: too many, or one that is too long.
        """
        self.check_number(name, len(texts))
        for place, text in enumerate(texts):
            if len(text) > self.settings.max_characters:
                where = name if len(texts) == 1 else f"{name}[{place}]"
                raise RefusedError(
                    400, f"{where}: {len(text)} characters; at most {self.settings.max_characters}", param=name
                )

    async def embed(self, texts: Sequence[str], kind: Kind, instruction: str | None) -> tuple[np.ndarray, Used]:
        """`[N, d]`, unit length."""
        self.can(Task.EMBEDDING)
        prompter = self.model.model.prompter
        tokenise = prompter.queries if kind == "query" else prompter.documents
        shortened: list[int] = []
        with self._admitted(texts, kind):
            ids = await self._tokenise(lambda: tokenise(texts, instruction, shortened=shortened))
        return await self._wait(self.engine.submit(Task.EMBEDDING, ids)), _used(ids, shortened)

    async def rerank(self, query: str, documents: Sequence[str], instruction: str | None) -> tuple[np.ndarray, Used]:
        """Relevance of each document, `[K]`, from 0 to 1, float64. That of a blank document is 0."""
        scores, used = await self._score(query, documents, instruction)
        relevance = self.model.model.head.relevance(scores)
        relevance[[self.model.model.prompter.is_blank(text) for text in documents]] = 0
        return relevance, used

    async def _score(self, query: str, documents: Sequence[str], instruction: str | None) -> tuple[np.ndarray, Used]:
        """The head's own scores, `[K]` float32; a blank document, which is not read, has the lowest of the others."""
        self.can(Task.RERANKING)
        places = filled(self.model.model, documents)
        if not places:
            return np.zeros(len(documents), np.float32), Used(0, 0)
        listed = [documents[place] for place in places]
        with self._admitted(listed, "document"):
            ids, used = await self._tokenise(lambda: self._prompts(query, listed, instruction))
        if self.reads_lists:
            model = self.model.model
            found = await self._wait(
                self.engine.call(lambda: score_candidates(model, [query], [listed], instruction)[0], used.tokens)
            )
        else:
            found = await self._wait(self.engine.submit(Task.RERANKING, ids))
        return with_blank(found, places, len(documents)), used

    def _prompts(self, query: str, documents: Sequence[str], instruction: str | None) -> tuple[list[list[int]], Used]:
        """Token ids of the query with each document, or with all of them where the head reads lists."""
        prompter, shortened, queries = self.model.model.prompter, list[int](), list[int]()
        if self.reads_lists:
            ids, _ = prompter.lists([query], [documents], instruction, shortened=shortened, shortened_queries=queries)
        else:
            repeated = [query] * len(documents)
            ids = prompter.pairs(repeated, documents, instruction, shortened=shortened, shortened_queries=queries)
        # The query is one text, however often it stands in a prompt.
        return ids, _used(ids, [*shortened, *queries[:1]])

    async def search(self, query: str, k: int, retrieve: Retrieve, rerank: int) -> Hits[Hit]:
        """The index's best documents of a query, as they are now: another process may have changed it.

        Raises:
            RefusedError: there is no index, or it can no longer be read.
        """
        index = self.index
        if index is None:
            raise RefusedError(404, "this server has no index; start it with --index", code="no_index")
        if rerank:
            self.can(Task.RERANKING)
        took: dict[str, float] = {}
        vector = None
        if not self.model.model.prompter.is_blank(query) and retrieve != "bm25":
            with timed(took, "embed"):
                vectors, _ = await self.embed([query], "query", None)
                vector = vectors[0]

        try:
            await asyncio.to_thread(index.refresh)
            # It multiplies, so it has its turn among the batches: one thread computes.
            found: Retrieved = await self._wait(
                self.engine.call(
                    lambda: index.retrieve(query, vector, k, retrieve=retrieve, rerank=rerank),
                    LOOK_UP,
                    first=vector is not None,
                )
            )
        except UserError as error:
            # Deleted, damaged, or made anew with another model; its path is the operator's business.
            log.error("the index cannot be read", extra={"reason": str(error)})
            message = "the index cannot be read; the server's log has more"
            raise RefusedError(503, message, code="index_unreadable") from None
        took |= found.milliseconds
        own = None
        if rerank and found.texts:
            with timed(took, "rerank"):
                scores, _ = await self._score(query, found.texts[:rerank], None)
                own = scores.tolist()
        return Hits(arrange(found, k, own), took)

    async def routing(self, query: str, document: str | None) -> dict[str, Any]:
        """How much of each expert the layers use for a query, or for a pair; see `routing_by_layer`."""
        task = Task.EMBEDDING if document is None else Task.RERANKING
        self.can(task)
        if document is not None and self.reads_lists:
            raise RefusedError(400, "this model reads a query with a list of documents, not pairs", param="document")
        model, prompter = self.model.model, self.model.model.prompter
        [ids] = await self._tokenise(
            lambda: prompter.queries([query]) if document is None else prompter.pairs([query], [document])
        )
        found: dict[str, Any] = await self._wait(self.engine.call(lambda: routing_by_layer(model, ids, task), len(ids)))
        return found

    def _admitted(self, texts: Sequence[str], kind: Kind) -> AbstractContextManager[object]:
        """A place in the queue for texts that are still to be tokenised, by about as many tokens as they have.

        Raises:
            QueueFullError: there is none.
        """
        limits = self.model.model.config.prompts
        most = limits.max_query_tokens if kind == "query" else limits.max_document_tokens
        release = ExitStack()
        release.callback(self.engine.reserve(sum(min(len(text) // CHARACTERS + 1, most) for text in texts)))
        return release

    async def _tokenise(self, function: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, function)

    async def _wait(self, future: Future[Any]) -> Any:
        # Cancelled, the task cancels what it waits for, and the engine forgets it.
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Finish what was accepted."""
        self.engine.close()
        self._tokenising.shutdown()


def _used(ids: Sequence[Sequence[int]], shortened: Sequence[int]) -> Used:
    return Used(sum(map(len, ids)), len(shortened))
