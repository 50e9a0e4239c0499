"""Batches by length, and texts through the model in the order they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from unimoer.model.inference import encode, length_batches, score


@given(
    lengths=st.lists(st.integers(0, 300), max_size=60),
    batch_tokens=st.integers(64, 1000),
    multiple=st.sampled_from([1, 8, 16]),
)
def test_every_text_comes_once_and_the_budget_holds(lengths: list[int], batch_tokens: int, multiple: int) -> None:
    batches = list(length_batches(lengths, batch_tokens=batch_tokens, multiple=multiple))
    assert sorted(index for rows in batches for index in rows) == list(range(len(lengths)))
    for rows in batches:
        padded = -(-max(lengths[row] for row in rows) // multiple) * multiple
        # A text longer than the budget has a batch of its own.
        assert len(rows) == 1 or len(rows) * padded <= batch_tokens
    order = [lengths[row] for rows in batches for row in rows]
    assert order == sorted(lengths, reverse=True)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_results_stand_in_the_order_given(base: Path, padding: str) -> None:
    model = tiny.build(base, noise=0.1, padding=padding)
    sequences = tiny.ids([3, 40, 7, 7, 21, 1, 40])
    with torch.inference_mode():
        vectors = torch.cat([model.embed(tiny.batch([sequence])) for sequence in sequences]).numpy()
        logits = torch.cat([model.score(tiny.batch([sequence])) for sequence in sequences]).numpy()
    for batch_tokens in (64, 100, 8192):
        found = encode(model, sequences, batch_tokens=batch_tokens, multiple=8)
        assert (found.dtype, found.shape) == (np.float32, (7, 32))
        assert np.allclose(found, vectors, atol=1e-5)
        scores = score(model, sequences, batch_tokens=batch_tokens, multiple=8)
        assert (scores.dtype, scores.shape) == (np.float32, (7,))
        assert np.allclose(scores, logits, atol=1e-4)


def test_progress_counts_texts(base: Path) -> None:
    seen: list[tuple[int, int]] = []
    encode(tiny.build(base), tiny.ids([10] * 9), batch_tokens=64, report=lambda *counts: seen.append(counts))
    assert seen == [(4, 9), (8, 9), (9, 9)]


def test_texts_without_a_token_do_not_stop_the_rest(base: Path) -> None:
    """An empty document, where the template adds nothing to it: its vector is zero, and it is found last."""
    model = tiny.build(base)
    sequences = [[], *tiny.ids([60, 60, 5]), [], []]
    found = encode(model, sequences, batch_tokens=128)
    assert np.isfinite(found).all()
    assert np.allclose(np.linalg.norm(found, axis=1), [0, 1, 1, 1, 0, 0], atol=1e-5)
    assert np.isfinite(encode(model, [[], []])).all()
    assert np.isfinite(score(model, sequences, batch_tokens=128)).all()


def test_evaluation_leaves_no_graph_and_no_gradient(base: Path) -> None:
    model = tiny.build(base)
    encode(model, tiny.ids([4, 5]))
    assert all(parameter.grad is None for parameter in model.parameters())
