"""Time left, in words, without a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from unimoer.executors import progress as module
from unimoer.executors.progress import PRIOR, Clock, Progress


def test_nothing_is_known_before_anything_is_done() -> None:
    clock = Clock({"train embedding": 10})
    assert clock.remaining() is None
    clock.skip("train embedding", 4)
    assert clock.remaining() is None


def test_what_was_seen_counts_at_its_own_rate() -> None:
    clock = Clock({"train embedding": 10, "train reranking": 5})
    clock.spent("train embedding", 2, 3.0)
    clock.spent("train reranking", 1, 4.0)
    assert clock.remaining() == pytest.approx(8 * 1.5 + 4 * 4.0)
    clock.skip("train reranking", 4)
    assert clock.remaining() == pytest.approx(8 * 1.5)


def test_what_was_not_seen_is_scaled_from_what_was() -> None:
    clock = Clock({"train embedding": 4, "evaluate reranking": 2})
    clock.spent("train embedding", 2, 6.0)
    expected = 2 * 3.0 + 2 * 3.0 * PRIOR["evaluate reranking"] / PRIOR["train"]
    assert clock.remaining() == pytest.approx(expected)


@given(
    done=st.lists(st.tuples(st.sampled_from(["train embedding", "bm25", "other"]), st.floats(0, 1e4)), max_size=30),
    units=st.integers(1, 20),
)
def test_the_estimate_is_never_negative(done: list[tuple[str, float]], units: int) -> None:
    clock = Clock({"train embedding": units, "bm25": units, "other": units, "evaluate embedding": units})
    for kind, seconds in done:
        clock.spent(kind, 1, seconds)
    remaining = clock.remaining()
    assert (remaining is None) == (not done)
    assert remaining is None or remaining >= 0


def test_without_a_terminal_there_are_plain_lines_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Progress(Console(file=file, width=40), {"train embedding": 100}) as progress:
        for step in range(1, 6):
            progress.update("training", f"step {step}/100 [with brackets]")
            now[0] += 15
        progress.clock.spent("train embedding", 5, 300.0)
        progress.update("another title", "detail")
        progress.note("a line that stays")
    assert file.getvalue().splitlines() == [
        "training · step 1/100 [with brackets]",
        "training · step 3/100 [with brackets]",
        "training · step 5/100 [with brackets]",
        "another title · detail · 1 h 35 min left",
        "a line that stays",
    ]


def test_on_a_terminal_one_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets and colons of a path are no markup and no emoji there either."""
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with Progress(console, {"train embedding": 2}) as progress:
        progress.update("loading the model", "runs/[old]/x[/y]:100:/final")
        assert progress._status is not None
        console.print(progress._status)
        progress.note("kept [old]:100:")
    assert "loading the model · runs/[old]/x[/y]:100:/final" in file.getvalue()
    assert "kept [old]:100:" in file.getvalue()
