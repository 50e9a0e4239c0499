"""FAISS over the vectors of an index, for what lies near a query; extra `faiss`.

Like BM25's index it is derived data, a folder that `index.json` names:

    faiss/NAME/   index.faiss, about.json: its kind and its parts, rows.npy [N]: the row of each vector in its part

It is not made anew at every change. Parts are written once, so what it holds of them stays true: rows that have died
since are masked in FAISS's own search, and parts that have come since are searched exactly beside it. Once a tenth is
either, it is built again. What it finds are candidates alone: they are scored by their part's own vectors, so FAISS's
codes of one byte a number cost no precision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unimoer.errors import UserError
from unimoer.files import new_folder, read_json, sync_files, write_json
from unimoer.search.vectors import Vectors

Ann = Literal["auto", "exact", "ivf", "hnsw"]
"""How near vectors are found: `auto` is exact below `LARGE` documents or without FAISS, and `ivf` above."""
LARGE = 200_000
"""Documents that an exact search goes through in less time than a query takes to be embedded."""
STALE = 0.1
"""Of its vectors: as many may be dead or missing before it is built again."""
BLOCK = 8192
SAMPLE = 40
"""Vectors a cluster that the clusters are found from; FAISS asks for 39."""
PROBES = 128
"""Clusters that are looked through, of `4 sqrt(N)`."""
LINKS, EF_BUILD, EF_SEARCH = 32, 100, 256
"""HNSW's M, efConstruction, and the least efSearch."""
WIDER = 2
"""Times as many candidates as are wanted, since FAISS orders them by rounded vectors."""

Living = Mapping[str, list[int]]
"""Dead rows of every part in which something lives."""


def installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


def load_faiss() -> Any:
    """The package, with as many threads as PyTorch has.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("FAISS is not installed; pip install 'unimoer[faiss]', or search exactly") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def check(ann: Ann) -> None:
    """Raises: UserError where an index is to be searched by FAISS, which is not installed."""
    if ann in ("ivf", "hnsw"):
        load_faiss()


def kind_for(ann: Ann, documents: int) -> Ann:
    """What `auto` comes to."""
    if ann != "auto":
        return ann
    return "ivf" if documents >= LARGE and installed() else "exact"


class Neighbours:
    """What was built once, as the index is now."""

    def __init__(self, folder: Path, living: Living) -> None:
        faiss = load_faiss()
        about = read_json(folder / "about.json")
        self.kind: str = about["kind"]
        self.parts: list[str] = about["parts"]
        self._ends: np.ndarray = np.cumsum(about["counts"], dtype=np.int64)
        self._rows: np.ndarray = np.load(folder / "rows.npy")
        # Mapped, not read; it stays readable when a writer removes the file.
        flag = faiss.IO_FLAG_MMAP if self.kind == "ivf" else faiss.IO_FLAG_MMAP_IFC
        try:
            self._index = faiss.read_index(str(folder / "index.faiss"), flag)
        except RuntimeError:
            raise ValueError("index.faiss is broken") from None
        if self.kind == "ivf":
            # Otherwise every search starts threads that read ahead, for longer than it takes.
            faiss.downcast_InvertedLists(self._index.invlists).prefetch_nthread = 0
        alive = self._alive(living)
        self._living = int(alive.sum())
        self._mask = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))

    def fits(self, living: Living, documents: int) -> bool:
        """Whether few enough of its vectors are dead, and few enough of so many living documents are not in it."""
        held = int(self._alive(living).sum())
        return len(self._rows) - held + documents - held <= STALE * len(self._rows)

    def search(self, query: np.ndarray, k: int) -> dict[str, np.ndarray]:
        """Part -> living rows near a query `[d]`, in no order, for each of its parts.

        Nothing at all where it finds fewer than k although more live, as behind many deletions.
        """
        faiss = load_faiss()
        wanted = min(self._living, WIDER * k)
        if self.kind == "ivf":
            how = faiss.SearchParametersIVF(sel=self._mask, nprobe=PROBES)
        else:
            how = faiss.SearchParametersHNSW(sel=self._mask, efSearch=max(EF_SEARCH, wanted))
        found = self._index.search(query[None], max(1, wanted), params=how)[1][0]
        found = found[found >= 0]
        if len(found) < min(k, self._living):
            return {}
        owners = np.searchsorted(self._ends, found, side="right")
        return {name: self._rows[found[owners == owner]] for owner, name in enumerate(self.parts)}

    def _alive(self, living: Living) -> np.ndarray:
        """`[N]`, of each of its vectors."""
        alive = np.zeros(len(self._rows), dtype=bool)
        for name, start, end in zip(self.parts, [0, *self._ends[:-1]], self._ends, strict=True):
            if name in living:
                alive[start:end] = np.isin(self._rows[start:end], living[name], invert=True)
        return alive


def build(folder: Path, kind: Ann, parts: Mapping[str, Vectors], living: Living) -> None:
    """Over all that is alive, whole or not at all; a few hundred megabytes beside what is written.

    Raises:
        UserError: FAISS is not installed, or the disk is full.
    """
    faiss = load_faiss()
    rows = {name: np.setdiff1d(np.arange(len(parts[name])), dead) for name, dead in living.items()}
    count = sum(map(len, rows.values()))
    dimension = next(iter(parts.values())).dimension
    clusters = max(1, min(int(4 * count**0.5), count // SAMPLE))
    described = f"IVF{clusters},SQ8" if kind == "ivf" else f"HNSW{LINKS},SQ8"
    index = faiss.index_factory(dimension, described, faiss.METRIC_INNER_PRODUCT)
    if kind == "ivf":
        # Of fewer documents than that it complains on stderr.
        index.cp.min_points_per_centroid = 1
    else:
        index.hnsw.efConstruction = EF_BUILD
    chosen = np.random.default_rng(0).choice(count, min(count, SAMPLE * int(4 * count**0.5)), replace=False)
    index.train(np.concatenate(list(_sample(parts, rows, np.sort(chosen)))))
    for name, own in rows.items():
        for start in range(0, len(own), BLOCK):
            index.add(parts[name][own[start : start + BLOCK]])
    with new_folder(folder) as temporary:
        try:
            faiss.write_index(index, str(temporary / "index.faiss"))
        except RuntimeError as error:
            raise OSError("index.faiss: FAISS could not write it whole") from error
        np.save(temporary / "rows.npy", np.concatenate(list(rows.values())).astype(np.int32))
        about = {"kind": kind, "parts": list(rows), "counts": [len(own) for own in rows.values()]}
        write_json(temporary / "about.json", about)
        sync_files(temporary)


def _sample(parts: Mapping[str, Vectors], rows: Mapping[str, np.ndarray], chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Vectors of chosen living rows, counted over all parts, ascending."""
    before = 0
    for name, own in rows.items():
        inside = chosen[(chosen >= before) & (chosen < before + len(own))] - before
        yield parts[name][own[inside]]
        before += len(own)
