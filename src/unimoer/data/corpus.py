"""A corpus that stays on disk: BEIR's `corpus.jsonl`, and beside it 28 bytes a document to find each by its id.

The dictionary of 8.8 million passages takes 5 GB of memory; here the texts are read from the file as they are asked
for, and the page cache of the system keeps what there is room for.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np

from unimoer.assets import cache_dir, staged
from unimoer.data.beir import Collector
from unimoer.errors import UserError
from unimoer.types import Document

LARGE = 100_000
"""Documents from which indices and vectors go to files of the cache folder, and are memory-mapped."""

_FORMAT = "corpus-1"


class Contents(Sequence[str]):
    """The contents of documents in the order of `keys`, each read when it is asked for."""

    def __init__(self, corpus: Mapping[str, Document], keys: Sequence[str]) -> None:
        self._corpus, self._keys = corpus, keys

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._corpus[key].content for key in self._keys[place]]
        return self._corpus[self._keys[place]].content

    def __len__(self) -> int:
        return len(self._keys)


class DiskCorpus(Mapping[str, Document]):
    """Documents by id, in the order of the file; a look-up reads and parses one line. Safe in threads, and pickles.

    `open_corpus` makes one. The file must not change while it is in use.
    """

    def __init__(self, path: Path, index: Path) -> None:
        self.path, self._index = path, index
        self._file = path.open("rb")
        names = ("offsets.npy", "hashes.npy", "rows.npy")
        # Views without numpy's memmap class, whose every item costs microseconds.
        self._offsets, self._hashes, self._rows = (np.asarray(np.load(index / name, mmap_mode="r")) for name in names)

    def __getitem__(self, key: str) -> Document:
        if isinstance(key, str):
            wanted = _hash(key)
            for place in range(int(np.searchsorted(self._hashes, wanted)), len(self)):
                if self._hashes[place] != wanted:
                    break
                found, document = self._read(int(self._rows[place]))
                if found == key:
                    return document
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        for row in range(len(self)):
            yield self._read(row)[0]

    def __len__(self) -> int:
        return len(self._hashes)

    def __reduce__(self) -> tuple[type[DiskCorpus], tuple[Path, Path]]:
        return DiskCorpus, (self.path, self._index)

    def _read(self, row: int) -> tuple[str, Document]:
        start, end = self._offsets[row].tolist()
        # Not mapped: pages of a mapped file count as this process's memory. And without a position to share.
        line = os.pread(self._file.fileno(), end - start, start)
        # The collector knows what an id, a title and a text may look like.
        reader = Collector(self.path.name)
        reader.document(str(self.path), row, json.loads(line))
        return reader.corpus.popitem()


def open_corpus(path: Path) -> DiskCorpus:
    """Open a `corpus.jsonl`. The first call reads it whole, checks it as `read_beir` does, and caches where lines lie.

    Raises:
        UserError: the file does not exist or is compressed, or the first problem in it, with its line.
    """
    path = path.resolve()
    if path.suffix == ".gz":
        raise UserError(f"{path}: is compressed, so no line can be read alone; unpack it with `gunzip`")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    state = path.stat()
    identity = f"{_FORMAT}|{path}|{state.st_size}|{state.st_mtime_ns}"
    index = cache_dir() / "corpora" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not index.exists():
        # Another process may have done the same meanwhile.
        with suppress(FileExistsError), staged(index) as temporary:
            temporary.mkdir()
            _scan(path, temporary)
    return DiskCorpus(path, index)


def _scan(path: Path, folder: Path) -> None:
    """Offsets `[N, 2]` of first and last byte; hashes `[N]`, sorted, and the row of each."""
    offsets, hashes, lines = array("q"), array("Q"), array("q")
    checked = Collector(path.name)
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            start, end = end, end + len(line)
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: is not valid JSON: {error}") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: must be a JSON object, found {type(record).__name__}")
            checked.document(str(path), number, record)
            # It keeps what it reads, to find ids that come twice; here the hashes do that.
            key, _ = checked.corpus.popitem()
            offsets.extend((start, end))
            hashes.append(int(_hash(key)))
            lines.append(number)
    if not hashes:
        raise UserError(f"{path}: the corpus is empty")
    found = np.frombuffer(hashes, dtype=np.uint64)
    rows = np.argsort(found, kind="stable").astype(np.int32)
    np.save(folder / "offsets.npy", np.frombuffer(offsets, dtype=np.int64).reshape(-1, 2))
    np.save(folder / "hashes.npy", found[rows])
    np.save(folder / "rows.npy", rows)
    _refuse_duplicates(DiskCorpus(path, folder), lines)


def _refuse_duplicates(corpus: DiskCorpus, lines: array[int]) -> None:
    equal = np.flatnonzero(corpus._hashes[1:] == corpus._hashes[:-1])
    groups = np.split(equal, np.flatnonzero(np.diff(equal) > 1) + 1)
    for group in groups:
        ids: dict[str, int] = {}
        for row in sorted(int(corpus._rows[place]) for place in (*group, *(group[-1:] + 1))):
            key, _ = corpus._read(row)
            if key in ids:
                raise UserError(
                    f"{corpus.path}:{lines[row]}: duplicate document id '{key}', which line {lines[ids[key]]} has"
                )
            ids[key] = row


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"))
