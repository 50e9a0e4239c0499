"""Vectors as a part keeps them: what rounding costs, that copies cost nothing more, and how much is widened at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unimoer.search import vectors
from unimoer.search.vectors import VECTORS, Precision, Vectors


def drawn(count: int, dimension: int = 48) -> np.ndarray:
    """Unit vectors, with the zero vector of an empty text among them."""
    found = np.random.default_rng(1).standard_normal((count, dimension), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[count // 2] = 0
    return found


def kept(folder: Path, precision: Precision, content: np.ndarray) -> Vectors:
    folder.mkdir(exist_ok=True)
    VECTORS[precision].write(folder, content)
    return VECTORS[precision](folder)


@pytest.mark.parametrize(("precision", "error"), [("float16", 2.0**-11), ("int8", 0.5 / 127)])
def test_a_number_is_rounded_by_no_more_than_its_kind_allows(
    precision: Precision, error: float, tmp_path: Path
) -> None:
    content = drawn(100)
    found = kept(tmp_path, precision, content)
    assert len(found) == 100 and found.dimension == 48
    every = found[np.arange(100)]
    assert every.dtype == np.float32 and not every[50].any()
    # Of a row's largest number, which is what its scale is from.
    assert (np.abs(every - content) <= 1.001 * error * np.abs(content).max(axis=1, keepdims=True)).all()
    np.testing.assert_array_equal(found[np.array([7, 3])], every[[7, 3]])


@pytest.mark.parametrize("precision", VECTORS)
@pytest.mark.parametrize("block", [1, 100, 48 * 7, 1 << 20])
def test_blocks_of_every_size_give_the_same_products(
    precision: Precision, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BLOCK", block)
    found, query = kept(tmp_path, precision, drawn(100)), drawn(3)[0]
    np.testing.assert_allclose(found.dot(query), found[np.arange(100)] @ query, atol=1e-6)


@pytest.mark.parametrize("precision", VECTORS)
def test_copies_are_the_same_to_the_last_bit(precision: Precision, tmp_path: Path) -> None:
    """Small parts are merged again and again: an index does not get worse by that."""
    first = kept(tmp_path / "first", precision, drawn(5000))
    kept(tmp_path / "second", precision, first[np.arange(5000)])
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_int8_is_half_of_float16(tmp_path: Path) -> None:
    size = {}
    for precision in VECTORS:
        kept(tmp_path / precision, precision, drawn(1000, 576))
        size[precision] = sum(file.stat().st_size for file in (tmp_path / precision).iterdir())
    assert size["int8"] < 0.51 * size["float16"]


@pytest.mark.parametrize("precision", VECTORS)
def test_no_more_than_a_block_is_widened_at_once(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype is torch.float32 and found.dim() == 2:
                largest = max(largest, found.numel())
            return found

    monkeypatch.setattr(vectors, "BLOCK", 480)
    found = kept(tmp_path, precision, drawn(1000))
    with Watch():
        found.dot(drawn(3)[0])
    assert largest == 480
