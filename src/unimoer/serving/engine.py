"""One thread that computes, and the queue before it: rows of many requests become batches of few tokens.

Both tasks wait in one queue. Requests take turns: every batch goes to the request that was served longest ago, gives
equal shares of its tokens to the others of the same task, and fills what is left. So a single query is answered while
a list of a thousand documents is being scored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import chain
from typing import Any

import numpy as np

from unimoer.model.inference import Alike, encode, score
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

log = logging.getLogger("unimoer.serving")


LINGER = 0.01
"""Seconds to wait for other requests before a batch: a client's way back, of a batch that takes ten times as long."""


class QueueFullError(Exception):
    """The queue is full. `seconds` is about how long it takes to be shorter."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"try again in {seconds:.0f} s")
        self.seconds = seconds


class ClosedError(Exception):
    """The engine takes no more work."""


Observe = Callable[[Task, int, int, float], None]
"""Told of every batch: task, rows, tokens, seconds."""


class Work:
    """Rows of one request; `future` becomes their outputs, in order."""

    def __init__(self, model: UnifiedModel, task: Task, ids: Sequence[Sequence[int]]) -> None:
        self.task = task
        self.future: Future[np.ndarray] = Future()
        # Equal rows are computed once: the same text has the same number, whatever batch it would have been in.
        places: dict[tuple[int, ...], int] = {}
        self.where = [places.setdefault(tuple(row), len(places)) for row in ids]
        self.rows = [list(row) for row in places]
        self.alike = Alike(model, self.rows) if task is Task.RERANKING else None
        shared = 0 if self.alike is None else self.alike.shared
        self.costs = [len(row) - shared for row in self.rows]
        self.waiting = deque(sorted(range(len(self.rows)), key=lambda row: (-len(self.rows[row]), row)))
        self.missing = len(self.rows)
        self.outputs: list[np.ndarray] = [np.empty(0)] * len(self.rows)

    @property
    def tokens(self) -> int:
        """That still wait."""
        return sum(self.costs[row] for row in self.waiting)

    def take(self, budget: int) -> list[int]:
        """Places of rows that fit, at least one."""
        taken: list[int] = []
        while self.waiting and (not taken or self.costs[self.waiting[0]] <= budget):
            taken.append(self.waiting.popleft())
            budget -= self.costs[taken[-1]]
        return taken

    def finish(self) -> None:
        whole = np.stack(self.outputs)[self.where]
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(whole)

    def fail(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Engine:
    """Computes rows of token ids, batch by batch, until it is closed."""

    def __init__(
        self, model: UnifiedModel, *, batch_tokens: int, queue_tokens: int, observe: Observe | None = None
    ) -> None:
        self.model = model
        self.batch_tokens, self.queue_tokens = batch_tokens, queue_tokens
        self._observe = observe
        self._queue: deque[Work | _Call] = deque()
        self._tokens = 0
        """Accepted and not answered."""
        self._rate = 0.0
        """Tokens a second, of late."""
        self._expected, self._took = 0, 0.0
        """Requests of the last batch and behind it, and its seconds."""
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tokens accepted and not yet computed."""
        return self._tokens

    @property
    def alive(self) -> bool:
        """Whether somebody computes what is submitted."""
        return self._thread.is_alive()

    def submit(self, task: Task, ids: Sequence[Sequence[int]]) -> Future[np.ndarray]:
        """Token ids of N texts or pairs -> their vectors `[N, d]` or scores `[N]`. Cancel it to give up its place.

        Raises:
            QueueFullError: it is full. A request that is larger than the whole queue is taken when nothing waits.
            ClosedError: after `close`.
        """
        work = Work(self.model, task, ids)
        self._accept(work, work.tokens)
        return work.future

    def call(self, function: Callable[[], Any], tokens: int, *, first: bool = False) -> Future[Any]:
        """Anything else that computes, between two batches; `tokens` is about what that is.

        `first`: before all that waits, but for what came `first` too. For a step of a request that has had its turn.
        """
        work = _Call(function, first)
        self._accept(work, tokens)
        return work.future

    def reserve(self, tokens: int) -> Callable[[], None]:
        """A place in the queue for what is not tokenised yet, until what is returned is called.

        Raises:
            QueueFullError, ClosedError: as `submit`.
        """
        with self._changed:
            self._admit(tokens)
            self._tokens += tokens
        return lambda: self._answered(tokens)

    def _admit(self, tokens: int) -> None:
        if self._closing:
            raise ClosedError
        if self._tokens and self._tokens + tokens > self.queue_tokens:
            raise QueueFullError(max(1.0, self._tokens / self._rate) if self._rate else 1.0)

    def _accept(self, work: Work | _Call, tokens: int) -> None:
        with self._changed:
            self._admit(tokens)
            if isinstance(work, Work) and not work.rows:
                raise ValueError("nothing to compute")
            work.future.add_done_callback(lambda _: self._answered(tokens))
            self._tokens += tokens
            ahead = sum(isinstance(other, _Call) and other.first for other in self._queue)
            self._queue.insert(ahead if isinstance(work, _Call) and work.first else len(self._queue), work)
            self._changed.notify()

    def _answered(self, tokens: int) -> None:
        with self._changed:
            self._tokens -= tokens

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._forget_cancelled()
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                    self._forget_cancelled()
                self._linger()
                self._forget_cancelled()
                if not self._queue:
                    continue
                first = self._queue.popleft()
                batch = [] if isinstance(first, _Call) else self._gather(first)
            if isinstance(first, _Call):
                first.run()
            else:
                self._compute(first.task, batch)

    def _linger(self) -> None:
        """Wait for requests that are about to come, if the last batch had several: their clients ask again.

        Otherwise two halves of them would take turns, each in batches of half the size. A single client waits for
        nothing.
        """
        end = time.perf_counter() + min(LINGER, self._took / 10)
        while len(self._queue) < self._expected and not self._closing:
            left = end - time.perf_counter()
            if left <= 0 or not self._changed.wait(left):
                return

    def _forget_cancelled(self) -> None:
        if any(work.future.cancelled() for work in self._queue):
            self._queue = deque(work for work in self._queue if not work.future.cancelled())

    def _gather(self, first: Work) -> list[tuple[Work, list[int]]]:
        """Rows of `first` and of others of its task that wait; whoever has rows left goes to the end of the queue."""
        others = [work for work in self._queue if isinstance(work, Work) and work.task is first.task]
        share = self.batch_tokens // (1 + len(others))
        left = self.batch_tokens
        taken: dict[int, tuple[Work, list[int]]] = {}
        for budget in (share, None):
            for work in (first, *others):
                if work.waiting and (left > 0 or not taken):
                    rows = work.take(min(left, share) if budget is not None else left)
                    left -= sum(work.costs[row] for row in rows)
                    taken.setdefault(id(work), (work, []))[1].extend(rows)
        chosen = list(taken.values())
        self._expected = len(self._queue) + 1
        served = {id(work) for work, _ in chosen}
        rest = [work for work in self._queue if id(work) not in served]
        self._queue = deque([*rest, *(work for work, _ in chosen if work.waiting)])
        return chosen

    def _compute(self, task: Task, batch: Sequence[tuple[Work, list[int]]]) -> None:
        count = sum(len(rows) for _, rows in batch)
        started = time.perf_counter()
        try:
            # Here and now: what fails, fails inside.
            outputs = list(self._outputs(task, batch))
        except Exception as error:
            log.exception("a batch failed", extra={"task": task.value, "rows": count})
            if len(batch) > 1:
                # One by one it shows whose fault it is.
                for one in batch:
                    self._compute(task, [one])
                return
            for work, _ in batch:
                work.waiting.clear()
                work.fail(error)
            with self._changed:
                gone = {id(work) for work, _ in batch}
                self._queue = deque(work for work in self._queue if id(work) not in gone)
            return
        seconds = time.perf_counter() - started
        tokens = sum(work.costs[row] for work, rows in batch for row in rows)
        self._took = seconds
        rate = tokens / max(seconds, 1e-9)
        self._rate = rate if self._rate == 0 else 0.8 * self._rate + 0.2 * rate
        if self._observe is not None:
            self._observe(task, count, tokens, seconds)
        found = iter(outputs)
        for work, rows in batch:
            for row in rows:
                work.outputs[row] = next(found)
            work.missing -= len(rows)
            if work.missing == 0:
                work.finish()

    def _outputs(self, task: Task, batch: Sequence[tuple[Work, list[int]]]) -> Iterable[np.ndarray]:
        """Of all rows of a batch, in its order."""
        # Rows of many lengths: what is given at once may be computed in several passes, each of similar ones.
        budget = 2 * self.batch_tokens
        ids = [work.rows[row] for work, rows in batch for row in rows]
        if task is Task.EMBEDDING:
            return encode(self.model, ids, batch_tokens=budget)
        if self.model.reads_apart:
            return score(self.model, ids, batch_tokens=budget)
        parts = [(work.alike, [work.rows[row] for row in rows]) for work, rows in batch]
        return chain.from_iterable(alike.score(rows, batch_tokens=budget) for alike, rows in parts if alike is not None)


class _Call:
    """Anything else that computes."""

    def __init__(self, function: Callable[[], Any], first: bool) -> None:
        self.future: Future[Any] = Future()
        self.first = first
        self._function = function

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            found = self._function()
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(found)
