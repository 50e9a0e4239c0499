"""Vectors and texts of documents on disk, in parts that are written once; what is alive stands in one small file.

    index.json         what a reader sees: the parts, their dead rows, the BM25 index. Replaced whole, last of all.
    parts/NAME/        vectors.npy [N, d] float16, texts.jsonl, offsets.npy [N, 2], ids.json, hashes.json
    bm25/NAME/         over all that is alive
    building.json      parts of an unfinished addition, which nobody reads until it is finished

A process that is killed at any moment leaves the last `index.json` and everything that it names.
"""

from __future__ import annotations

import hashlib
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
from unimoer.files import new_folder, read_json, write_json

FORMAT = 1
TRIES = 5


def text_hash(text: str) -> str:
    """Of a document's content: what is there already need not be embedded again."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Part:
    """Documents that were added together, `[N]`; never changed.

    All files are opened at once: a writer may remove the part while somebody still reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = read_json(folder / "ids.json")
        self.hashes: list[str] = read_json(folder / "hashes.json")
        # Views without numpy's memmap class, whose every item costs microseconds; mapped for this process alone, since
        # PyTorch takes no memory that cannot be written to.
        self.vectors: np.ndarray = np.asarray(np.load(folder / "vectors.npy", mmap_mode="c"))
        """`[N, d]` float16, memory-mapped."""
        self._offsets: np.ndarray = np.load(folder / "offsets.npy")
        self._file = (folder / "texts.jsonl").open("rb")

    def text(self, row: int) -> str:
        start, end = self._offsets[row].tolist()
        found: str = json.loads(os.pread(self._file.fileno(), end - start, start))
        return found

    @classmethod
    def write(cls, folder: Path, documents: Mapping[str, str], vectors: np.ndarray) -> Self:
        """All or nothing."""
        with new_folder(folder) as temporary:
            np.save(temporary / "vectors.npy", vectors.astype(np.float16))
            lines = [json.dumps(text).encode() + b"\n" for text in documents.values()]
            ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
            np.save(temporary / "offsets.npy", np.stack([ends - [len(line) for line in lines], ends], axis=1))
            (temporary / "texts.jsonl").write_bytes(b"".join(lines))
            write_json(temporary / "ids.json", list(documents))
            write_json(temporary / "hashes.json", [text_hash(text) for text in documents.values()])
            for file in temporary.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        return cls(folder)


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


class Store:
    """The documents of an index, by id, and what is written beside them."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self.parts = {name: self._open(name) for name in state.parts}
        self.bm25 = None if state.bm25 is None else BM25.load(folder / "bm25" / state.bm25)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """What `index.json` names, all of it opened.

        Raises:
            UserError: there is no index, or one of another format.
        """
        for _ in range(TRIES):
            before = _read(folder)
            try:
                return cls(folder, before)
            except (OSError, EOFError, ValueError, KeyError, UserError) as error:
                # A writer may have replaced it meanwhile, and cleared away what it named.
                if _read(folder) == before:
                    raise UserError(f"{folder}: a damaged index: {error}; delete it and make it anew") from None
        raise UserError(f"{folder}: is being changed too fast to be read; try again")

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
        return Part.write(self.folder / "parts" / uuid4().hex[:12], documents, vectors)

    def commit(self, state: State, *, finished: bool) -> None:
        """Make a state the one that readers see, then clear away what nothing names.

        Unless an addition is `finished`, what one had written before it was stopped is kept.
        """
        write_json(self.folder / "index.json", {"format": FORMAT, **vars(state)})
        if finished:
            (self.folder / "building.json").unlink(missing_ok=True)
        self.state = state
        for kind, kept in (("parts", {*state.parts, *self._waiting()}), ("bm25", {state.bm25})):
            for path in (self.folder / kind).glob("*"):
                # A reader that has opened a file keeps it until it closes it.
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _open(self, name: str) -> Part:
        return Part(self.folder / "parts" / name)


def _read(folder: Path) -> State:
    if not (folder / "index.json").exists():
        raise UserError(f"{folder}: no index here; make one with `unimoer index`")
    content = read_json(folder / "index.json")
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{folder}: an index of another version; make it anew")
    try:
        return State(**content)
    except TypeError:
        raise UserError(f"{folder}: a damaged index: index.json lacks a field; delete it and make it anew") from None
