"""What a change makes of an index: which rows live, which parts become one, BM25 over all, and FAISS where it pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

import numpy as np

from unimoer.data.bm25 import BM25
from unimoer.search.neighbours import Ann, Living, build, kind_for
from unimoer.search.store import Part, Store

PART = 8192
"""Documents of a part: what is lost when an addition is killed."""
CHARACTERS = 1 << 25
"""Of a part's texts, which are in memory together."""
SMALL = 8
"""Parts of less than half the size, before they become one: each holds two open files."""


def apply(
    store: Store, added: Sequence[Part], dead: Mapping[str, list[int]], gone: set[str], *, finished: bool
) -> Store:
    """The index with some parts more and some documents less, as a reader opens it; the caller holds the lock.

    Of every id the last row lives, unless it is `gone` or among the rows that are `dead` in an added part.
    """
    parts = store.parts | {part.folder.name: part for part in added}
    last, living = _living(parts, {**store.state.parts, **dead}, gone)
    living, merged = _merged(store, parts, living)
    bm25 = None
    if last:
        bm25 = uuid4().hex[:12]
        (store.folder / "bm25").mkdir(exist_ok=True)
        folder = store.folder / "bm25" / bm25
        BM25(_Texts(parts, last), split_identifiers=store.state.split_identifiers, folder=folder)
    faiss = _neighbours(store, {**parts, **merged}, living, store.state.ann)
    store.commit(replace(store.state, parts=living, bm25=bm25, faiss=faiss), finished=finished)
    return Store.open(store.folder)


def choose(store: Store, ann: Ann) -> Store:
    """The index as it is, searched in another way; the caller holds the lock."""
    faiss = _neighbours(store, store.parts, store.state.parts, ann)
    store.commit(replace(store.state, ann=ann, faiss=faiss), finished=False)
    return Store.open(store.folder)


def _neighbours(store: Store, parts: Mapping[str, Part], living: Living, ann: Ann) -> str | None:
    """The name of what FAISS is to search: what there is already while it fits, otherwise a new one."""
    documents = sum(len(parts[name].ids) - len(dead) for name, dead in living.items())
    kind = kind_for(ann, documents)
    if kind == "exact" or documents == 0:
        return None
    there = store.neighbours
    if there is not None and there.kind == kind and there.fits(living, documents):
        return store.state.faiss
    name = uuid4().hex[:12]
    build(store.folder / "faiss" / name, kind, {one: parts[one].vectors for one in living}, living)
    return name


def _living(
    parts: Mapping[str, Part], dead: Mapping[str, list[int]], gone: set[str]
) -> tuple[dict[str, tuple[str, int]], dict[str, list[int]]]:
    """Part and row of every id that lives, and the dead rows of the parts in which something does."""
    rows = {name: set(own) for name, own in dead.items()}
    last: dict[str, tuple[str, int]] = {}
    for name, own in rows.items():
        for row, key in enumerate(parts[name].ids):
            if row in own:
                continue
            if key in gone:
                own.add(row)
                continue
            if key in last:
                other, place = last[key]
                rows[other].add(place)
            last[key] = (name, row)
    return last, {name: sorted(own) for name, own in rows.items() if len(own) < len(parts[name].ids)}


def _merged(
    store: Store, parts: Mapping[str, Part], living: dict[str, list[int]]
) -> tuple[dict[str, list[int]], dict[str, Part]]:
    """Parts that are small or mostly dead as fewer, once there are several: what lives in them is copied.

    Returns the dead rows of all parts that are left, and those that are new.
    """
    alive = {name: len(parts[name].ids) - len(dead) for name, dead in living.items()}
    small = [name for name, dead in living.items() if alive[name] < PART // 2 or len(dead) > alive[name]]
    wasted = sum(len(living[name]) for name in small) > sum(alive[name] for name in small)
    if len(small) < (1 if wasted else SMALL):
        return living, {}
    new: dict[str, Part] = {}
    found = {name: dead for name, dead in living.items() if name not in small}
    texts: dict[str, str] = {}
    vectors: list[np.ndarray] = []
    size = 0

    def write() -> None:
        one = store.write(texts, np.stack(vectors))
        new[one.folder.name] = one
        found[one.folder.name] = []
        texts.clear()
        vectors.clear()

    for name in small:
        part = parts[name]
        rows = np.setdiff1d(np.arange(len(part.ids)), living[name])
        for row, vector in zip(rows.tolist(), part.vectors[rows], strict=True):
            texts[part.ids[row]] = part.text(row)
            vectors.append(vector)
            size += len(texts[part.ids[row]])
            if len(texts) == PART or size >= CHARACTERS:
                write()
                size = 0
    if texts:
        write()
    return found, new


class _Texts(Mapping[str, str]):
    """Contents of living documents, each read when it is asked for."""

    def __init__(self, parts: Mapping[str, Part], rows: Mapping[str, tuple[str, int]]) -> None:
        self._parts, self._rows = parts, rows

    def __getitem__(self, key: str) -> str:
        name, row = self._rows[key]
        return self._parts[name].text(row)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
