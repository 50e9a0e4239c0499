"""The queue: turns, limits, cancelled and failed work, and an end that loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest

from unimoer import UniMoER
from unimoer.model.inference import encode, score
from unimoer.serving import engine as module
from unimoer.serving.engine import ClosedError, Engine, QueueFullError
from unimoer.types import Task

Make = Callable[..., Engine]


@pytest.fixture
def make(model: UniMoER) -> Iterator[Make]:
    engines: list[Engine] = []

    def build(**settings: Any) -> Engine:
        engines.append(Engine(model.model, **{"batch_tokens": 64, "queue_tokens": 1 << 20, **settings}))
        return engines[-1]

    yield build
    for one in engines:
        one.close()


@pytest.fixture
def held(make: Make) -> Callable[..., tuple[Engine, Callable[[], None]]]:
    """An engine that computes nothing until it is let go."""

    def build(**settings: Any) -> tuple[Engine, Callable[[], None]]:
        engine, going, begun = make(**settings), threading.Event(), threading.Event()

        def stand() -> None:
            begun.set()
            assert going.wait(30)

        engine.call(stand, 0)
        assert begun.wait(30)
        return engine, going.set

    return build


def rows(*lengths: int) -> list[list[int]]:
    return [[5 + (place + 7 * number) % 90 for place in range(length)] for number, length in enumerate(lengths)]


def test_outputs_are_those_of_the_model(make: Make, model: UniMoER) -> None:
    ids = rows(3, 40, 3, 90, 1, 17)
    ids.append(ids[1])
    engine = make()
    vectors, scores = (engine.submit(task, ids) for task in (Task.EMBEDDING, Task.RERANKING))
    np.testing.assert_allclose(vectors.result(30), encode(model.model, ids), atol=1e-5)
    np.testing.assert_allclose(scores.result(30), score(model.model, ids), atol=1e-4)
    assert (vectors.result()[1] == vectors.result()[-1]).all()


def test_a_single_text_does_not_wait_for_a_long_list(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, go = held()
    order: list[str] = []

    def named(name: str, future: Future[Any]) -> Future[Any]:
        future.add_done_callback(lambda _: order.append(name))
        return future

    futures = [
        named("list", engine.submit(Task.RERANKING, rows(*[20] * 200))),
        named("query", engine.submit(Task.EMBEDDING, rows(8))),
        named("pair", engine.submit(Task.RERANKING, rows(9))),
    ]
    go()
    wait(futures, 30)
    assert order[-1] == "list"


def test_batches_keep_to_their_tokens_and_hold_one_task(held: Any) -> None:
    seen: list[tuple[Task, int, int]] = []
    engine, go = held(observe=lambda task, rows, tokens, _: seen.append((task, rows, tokens)))
    futures = [engine.submit(task, rows(*[16] * count)) for count in (1, 5, 30) for task in Task]
    go()
    wait(futures, 30)
    assert all(tokens <= 64 for _, _, tokens in seen)
    assert {task: sum(count for one, count, _ in seen if one is task) for task in Task} == dict.fromkeys(Task, 36)
    # Requests share a batch.
    assert len(seen) == 18


def test_what_goes_first_keeps_its_order(held: Any) -> None:
    engine, go = held()
    order: list[str] = []
    futures = [engine.submit(Task.EMBEDDING, rows(8))]
    futures[0].add_done_callback(lambda _: order.append("query"))
    futures += [engine.call(lambda name=name: order.append(name), 4, first=True) for name in "abc"]
    futures.append(engine.call(lambda: order.append("last"), 4))
    go()
    wait(futures, 30)
    assert order == ["a", "b", "c", "query", "last"]


def test_a_place_can_be_kept(held: Any) -> None:
    engine, go = held(queue_tokens=100)
    release = engine.reserve(80)
    with pytest.raises(QueueFullError):
        engine.reserve(30)
    assert engine.waiting == 80
    release()
    assert engine.waiting == 0
    engine.reserve(30)()
    go()


def test_a_full_queue_says_so(held: Any) -> None:
    engine, go = held(queue_tokens=100)
    first = engine.submit(Task.EMBEDDING, rows(300))
    with pytest.raises(QueueFullError) as error:
        engine.submit(Task.EMBEDDING, rows(1))
    assert error.value.seconds >= 1
    go()
    first.result(30)
    engine.submit(Task.EMBEDDING, rows(1)).result(30)
    assert engine.waiting == 0


def test_cancelled_work_frees_its_place(held: Any) -> None:
    seen: list[int] = []
    engine, go = held(queue_tokens=100, observe=lambda _, count, *rest: seen.append(count))
    gone = engine.submit(Task.EMBEDDING, rows(90))
    assert engine.waiting == 90 and gone.cancel() and engine.waiting == 0
    kept = engine.submit(Task.EMBEDDING, rows(80))
    go()
    kept.result(30)
    assert seen == [1]


def test_a_failed_batch_fails_its_requests_alone(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, go = held()

    def broken(*args: Any, **settings: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module.Alike, "score", broken)
    bad = [engine.submit(Task.RERANKING, rows(*[20] * count)) for count in (1, 50)]
    good = engine.submit(Task.EMBEDDING, rows(8))
    go()
    assert good.result(30).shape[0] == 1
    for future in bad:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(30)
    assert engine.waiting == 0


def test_one_request_does_not_fail_those_of_its_batch(
    held: Any, model: UniMoER, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, go = held()

    def fails_on_long_ones(given: Any, ids: Any, **settings: Any) -> Any:
        if max(map(len, ids)) > 30:
            raise RuntimeError("out of memory")
        return encode(given, ids, **settings)

    monkeypatch.setattr(module, "encode", fails_on_long_ones)
    short = rows(8, 9)
    good, bad = engine.submit(Task.EMBEDDING, short), engine.submit(Task.EMBEDDING, rows(40))
    go()
    np.testing.assert_allclose(good.result(30), encode(model.model, short), atol=1e-5)
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(30)
    assert engine.waiting == 0 and engine.alive


def test_closing_finishes_what_was_accepted(held: Any) -> None:
    engine, go = held()
    futures = [engine.submit(Task.RERANKING, rows(*[20] * 30)) for _ in range(5)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    while True:
        try:
            futures.append(engine.submit(Task.EMBEDDING, rows(4)))
        except ClosedError:
            break
    go()
    closing.join(30)
    assert not closing.is_alive() and all(future.done() and not future.exception() for future in futures)
