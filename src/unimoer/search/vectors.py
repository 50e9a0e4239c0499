"""How a part keeps its vectors, and what their dot products with a query are: one class a way.

    float16   vectors.npy [N, d] float16
    int8      vectors.npy [N, d] int8, scales.npy [N] float32: a number is its code times the scale of its row

Both are memory-mapped and widened to float32 a block at a time, so a search takes megabytes whatever the index holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
import torch

Precision = Literal["float16", "int8"]
BLOCK = 1 << 20
"""Numbers that are widened together: in float32 they still lie in the processor's cache when they are multiplied."""


class Vectors(ABC):
    """`[N, d]`, in the folder of a part."""

    def __init__(self, folder: Path) -> None:
        # Views without numpy's memmap class, whose every item costs microseconds; mapped for this process alone, since
        # PyTorch takes no memory that cannot be written to.
        self._numbers: np.ndarray = np.asarray(np.load(folder / "vectors.npy", mmap_mode="c"))

    @staticmethod
    @abstractmethod
    def write(folder: Path, vectors: np.ndarray) -> None:
        """`[N, d]` float32."""

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def dimension(self) -> int:
        return self._numbers.shape[1]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """`[n, d]` float32."""
        return self._numbers[rows].astype(np.float32)

    def dot(self, query: np.ndarray) -> np.ndarray:
        """`[N]` float32: all rows with a query `[d]`."""
        numbers, asked = torch.from_numpy(self._numbers), torch.from_numpy(query)
        found = torch.empty(len(self))
        step = max(1, BLOCK // self.dimension)
        for start in range(0, len(self), step):
            # PyTorch widens half precision in a third of NumPy's time.
            torch.mv(numbers[start : start + step].float(), asked, out=found[start : start + step])
        scores: np.ndarray = found.numpy()
        return scores


class Float16(Vectors):
    """Two bytes a number."""

    @staticmethod
    def write(folder: Path, vectors: np.ndarray) -> None:
        np.save(folder / "vectors.npy", vectors.astype(np.float16))


class Int8(Vectors):
    """One byte a number: the largest of a row has the code 127 or -127."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._scales: np.ndarray = np.load(folder / "scales.npy")

    @staticmethod
    def write(folder: Path, vectors: np.ndarray) -> None:
        scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
        # The vector of a text without a token is 0.
        codes = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None])
        np.save(folder / "vectors.npy", codes.astype(np.int8))
        np.save(folder / "scales.npy", scales)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return super().__getitem__(rows) * self._scales[rows, None]

    def dot(self, query: np.ndarray) -> np.ndarray:
        return super().dot(query) * self._scales


VECTORS: dict[Precision, type[Vectors]] = {"float16": Float16, "int8": Int8}
