"""What an addition or a deletion makes of an index: which rows live, which parts become one, and BM25 over all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

import numpy as np

from unimoer.data.bm25 import BM25
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
    living = _merged(store, parts, living)
    bm25 = None
    if last:
        bm25 = uuid4().hex[:12]
        (store.folder / "bm25").mkdir(exist_ok=True)
        folder = store.folder / "bm25" / bm25
        BM25(_Texts(parts, last), split_identifiers=store.state.split_identifiers, folder=folder)
    store.commit(replace(store.state, parts=living, bm25=bm25), finished=finished)
    return Store.open(store.folder)


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


def _merged(store: Store, parts: Mapping[str, Part], living: dict[str, list[int]]) -> dict[str, list[int]]:
    """Parts that are small or mostly dead as fewer, once there are several: what lives in them is copied."""
    alive = {name: len(parts[name].ids) - len(dead) for name, dead in living.items()}
    small = [name for name, dead in living.items() if alive[name] < PART // 2 or len(dead) > alive[name]]
    wasted = sum(len(living[name]) for name in small) > sum(alive[name] for name in small)
    if len(small) < (1 if wasted else SMALL):
        return living
    found = {name: dead for name, dead in living.items() if name not in small}
    texts: dict[str, str] = {}
    vectors: list[np.ndarray] = []
    size = 0

    def write() -> None:
        found[store.write(texts, np.stack(vectors)).folder.name] = []
        texts.clear()
        vectors.clear()

    for name in small:
        dead = set(living[name])
        for row in (row for row in range(len(parts[name].ids)) if row not in dead):
            texts[parts[name].ids[row]] = parts[name].text(row)
            vectors.append(parts[name].vectors[row])
            size += len(texts[parts[name].ids[row]])
            if len(texts) == PART or size >= CHARACTERS:
                write()
                size = 0
    if texts:
        write()
    return found


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
