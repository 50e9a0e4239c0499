"""Batches by length, and texts through the model in the order they were given."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from unimoer.errors import UserError
from unimoer.model import inference
from unimoer.model.inference import encode, encode_to, identify, length_batches, score


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


TEXTS = [f"the {colour} {thing}" for colour in tiny.COLOURS for thing in (*tiny.THINGS["garden"], "", "very " * 9)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_in_a_file_are_those_in_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Literal["float32", "float16"]
) -> None:
    monkeypatch.setattr(inference, "WINDOW", 10)
    model = tiny.build(base, noise=0.1)
    seen: list[tuple[int, int]] = []
    found = encode_to(
        tmp_path / "new" / "vectors.npy",
        model,
        TEXTS,
        model.prompter.documents,
        identity="x",
        dtype=dtype,
        report=lambda *counts: seen.append(counts),
    )
    expected = encode(model, model.prompter.documents(TEXTS))
    assert (found.shape, found.dtype) == (expected.shape, np.dtype(dtype))
    assert np.allclose(found, expected, atol=1e-6 if dtype == "float32" else 1e-3)
    assert seen == [*[(done, 42) for done in (10, 20, 30, 40)], (42, 42)]
    assert np.array_equal(np.load(tmp_path / "new" / "vectors.npy"), found)


def test_a_killed_encoding_goes_on_where_it_was(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "WINDOW", 10)
    path = tmp_path / "vectors.npy"
    model = tiny.build(base, noise=0.1)
    seen: list[int] = []

    def tokenise(texts: Sequence[str]) -> list[list[int]]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(texts))
        return model.prompter.documents(texts)

    with pytest.raises(KeyboardInterrupt):
        encode_to(path, model, TEXTS, tokenise, identity="x")
    seen.append(0)
    found = encode_to(path, model, TEXTS, tokenise, identity="x")
    assert seen == [10, 10, 10, 0, 10, 2]
    assert np.allclose(found, encode(model, model.prompter.documents(TEXTS)), atol=1e-6)
    encode_to(path, model, TEXTS, tokenise, identity="x")
    assert len(seen) == 6
    for changed in ({"identity": "y"}, {"identity": "x", "dtype": "float16"}):
        with pytest.raises(UserError, match=r"vectors\.npy: holds vectors of another model, corpus or precision"):
            encode_to(path, model, TEXTS, tokenise, **changed)
    with pytest.raises(UserError, match="another model, corpus"):
        encode_to(path, model, TEXTS[1:], tokenise, identity="x")
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="another model, corpus"):
        encode_to(path, model, TEXTS, tokenise, identity="x")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny
from unimoer.model import inference
inference.WINDOW = 10
model, windows = tiny.build(Path({base!r}), noise=0.1), []
def tokenise(texts):
    windows.append(texts)
    if len(windows) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return model.prompter.documents(texts)
inference.encode_to(Path({path!r}), model, {texts!r}, tokenise, identity="x")
"""


def test_sigkill_loses_one_window(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "WINDOW", 10)
    path = tmp_path / "vectors.npy"
    code = KILLED.format(tests=str(Path(tiny.__file__).parent), base=str(base), path=str(path), texts=TEXTS)
    done = subprocess.run([sys.executable, "-c", code], env=tiny.environment(tmp_path), check=False)
    assert done.returncode == -signal.SIGKILL
    model, read = tiny.build(base, noise=0.1), []

    def tokenise(texts: Sequence[str]) -> list[list[int]]:
        read.extend(texts)
        return model.prompter.documents(texts)

    found = encode_to(path, model, TEXTS, tokenise, identity="x")
    assert read == TEXTS[20:]
    assert np.allclose(found, encode(model, model.prompter.documents(TEXTS)), atol=1e-5)


def test_the_identity_is_of_every_weight_and_part(base: Path) -> None:
    model = tiny.build(base, noise=0.1)
    first = identify(model, "corpus")
    assert first == identify(tiny.build(base, noise=0.1), "corpus")
    assert first != identify(model, "other")
    assert first != identify(model, "corpus", "")
    weights = next(parameter for parameter in model.parameters() if not parameter.requires_grad)
    with torch.no_grad():
        weights.flatten()[-1] += 1e-3
    assert first != identify(model, "corpus")
