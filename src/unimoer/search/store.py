"""Vectors and texts of documents on disk, in parts that are written once; what is alive stands in one small file.

    index.json         what a reader sees: the parts, their dead rows, what is built over them. Replaced whole, last.
    parts/NAME/        vectors.npy [N, d], texts.jsonl, offsets.npy [N, 2], ids.json, hashes.json
    bm25/NAME/         over all that is alive
    faiss/NAME/        over most of it, where an exact search would take long
    building.json      parts of an unfinished addition, which nobody reads until it is finished

A process that is killed at any moment leaves the last `index.json` and everything that it names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np

from unimoer.data.bm25 import BM25
from unimoer.errors import UserError
from unimoer.files import new_folder, read_json, sync_files, write_json
from unimoer.library.identity import text_hash
from unimoer.search.neighbours import Ann, Neighbours, installed
from unimoer.search.vectors import VECTORS, Precision

FORMAT = 2
READABLE = (1, 2)
"""The first one had neither int8 nor FAISS, and is read as an index without them."""
TRIES = 5


class Part:
    """Documents that were added together, `[N]`; never changed.

    All files are opened at once: a writer may remove the part while somebody still reads it.
    """

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.folder = folder
        self.ids: list[str] = read_json(folder / "ids.json")
        self.hashes: list[str] = read_json(folder / "hashes.json")
        self.vectors = VECTORS[precision](folder)
        self._offsets: np.ndarray = np.load(folder / "offsets.npy")
        self._file = (folder / "texts.jsonl").open("rb")

    def text(self, row: int) -> str:
        start, end = self._offsets[row].tolist()
        found: str = json.loads(os.pread(self._file.fileno(), end - start, start))
        return found

    @classmethod
    def write(cls, folder: Path, documents: Mapping[str, str], vectors: np.ndarray, precision: Precision) -> Self:
        """All or nothing."""
        with new_folder(folder) as temporary:
            VECTORS[precision].write(temporary, vectors)
            lines = [json.dumps(text).encode() + b"\n" for text in documents.values()]
            ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
            np.save(temporary / "offsets.npy", np.stack([ends - [len(line) for line in lines], ends], axis=1))
            (temporary / "texts.jsonl").write_bytes(b"".join(lines))
            write_json(temporary / "ids.json", list(documents))
            write_json(temporary / "hashes.json", [text_hash(text) for text in documents.values()])
            sync_files(temporary)
        return cls(folder, precision)


@dataclass(frozen=True)
class State:
    """What `index.json` holds."""

    model: str
    """Name or folder of the checkpoint."""
    identity: str
    """Hash of all that decides about a vector."""
    split_identifiers: bool = False
    parts: Mapping[str, list[int]] = field(default_factory=dict)
    """Rows of every part that are dead: deleted, or replaced in a later part. An id lives once."""
    bm25: str | None = None
    vectors: Precision = "float16"
    ann: Ann = "auto"
    faiss: str | None = None


class Store:
    """The documents of an index, by id, and what is written beside them."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self._stamp: tuple[int, int] | None = None
        self.parts = {name: self._open(name) for name in state.parts}
        self.bm25 = None if state.bm25 is None else BM25.load(folder / "bm25" / state.bm25)
        # Without FAISS, what was left to it is searched exactly.
        there = state.faiss is not None and installed()
        self.neighbours = Neighbours(folder / "faiss" / str(state.faiss), state.parts) if there else None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """What `index.json` names, all of it opened.

        Raises:
            UserError: there is no index, or one of another format.
        """
        for _ in range(TRIES):
            stamp, before = _stamp(folder), _read(folder)
            try:
                found = cls(folder, before)
                found._stamp = stamp
                return found
            except (OSError, EOFError, ValueError, KeyError, UserError) as error:
                # A writer may have replaced it meanwhile, and cleared away what it named.
                if _read(folder) == before:
                    raise UserError(f"{folder}: a damaged index: {error}; delete it and make it anew") from None
        raise UserError(f"{folder}: is being changed too fast to be read; try again")

    @property
    def current(self) -> bool:
        """Whether nobody has changed the index since it was opened."""
        return self._stamp == _stamp(self.folder)

    @property
    def rows(self) -> dict[str, tuple[str, int]]:
        """Id -> part and row of every living document."""
        return dict(self._alive())

    def _alive(self) -> Iterator[tuple[str, tuple[str, int]]]:
        for name, rows in self.state.parts.items():
            dead = set(rows)
            yield from ((key, (name, row)) for row, key in enumerate(self.parts[name].ids) if row not in dead)

    def text(self, place: tuple[str, int]) -> str:
        return self.parts[place[0]].text(place[1])

    def pending(self) -> list[Part]:
        """Parts that an addition had written before it was stopped, of the same model."""
        return [self._open(name) for name in self._waiting() if (self.folder / "parts" / name).exists()]

    def _waiting(self) -> list[str]:
        path = self.folder / "building.json"
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        if found.get("identity") != self.state.identity:
            return []
        # A process may have been killed just after its parts became those that count.
        return [name for name in found["parts"] if name not in self.state.parts]

    def add_pending(self, documents: Mapping[str, str], vectors: np.ndarray, before: Sequence[Part]) -> Part:
        """Write a part that is not seen yet, after those that wait already."""
        part = self.write(documents, vectors)
        names = [other.folder.name for other in (*before, part)]
        write_json(self.folder / "building.json", {"identity": self.state.identity, "parts": names})
        return part

    def write(self, documents: Mapping[str, str], vectors: np.ndarray) -> Part:
        """A part that nothing names yet."""
        return Part.write(self.folder / "parts" / uuid4().hex[:12], documents, vectors, self.state.vectors)

    def commit(self, state: State, *, finished: bool) -> None:
        """Make a state the one that readers see, then clear away what nothing names.

        Unless an addition is `finished`, what one had written before it was stopped is kept.
        """
        write_json(self.folder / "index.json", {"format": FORMAT, **vars(state)})
        if finished:
            (self.folder / "building.json").unlink(missing_ok=True)
        self.state = state
        kept: dict[str, set[str | None]] = {"bm25": {state.bm25}, "faiss": {state.faiss}}
        kept["parts"] = {*state.parts, *self._waiting()}
        for kind, names in kept.items():
            for path in (self.folder / kind).glob("*"):
                # A reader that has opened a file keeps it until it closes it.
                if path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)

    def _open(self, name: str) -> Part:
        return Part(self.folder / "parts" / name, self.state.vectors)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Another one after every change: the file is replaced, never written to."""
    try:
        found = (folder / "index.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(folder: Path) -> State:
    if not (folder / "index.json").exists():
        raise UserError(f"{folder}: no index here; make one with `unimoer index`")
    content = read_json(folder / "index.json")
    if not isinstance(content, dict) or content.pop("format", None) not in READABLE:
        raise UserError(f"{folder}: an index of another version; make it anew")
    try:
        return State(**content)
    except TypeError:
        raise UserError(f"{folder}: a damaged index: index.json lacks a field; delete it and make it anew") from None
