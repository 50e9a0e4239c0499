"""Which base a run was made on: a hash of its content that needs no weights in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from unimoer.config import ModelConfig
from unimoer.model.backbone import locate

_SAMPLE = 1 << 10
"""Bytes read from the start, the middle and the end of every tensor."""


def base_identity(config: ModelConfig) -> str:
    """Sixteen hex digits over the base's files; of a hub model that is not on this machine, over its name and revision.

    Of weights every tensor is sampled: two bases that differ in any matrix, as two merged adapters do, are two.
    """
    return _identity(locate(config.base), config.revision or "main")


@lru_cache(maxsize=32)
def _identity(location: str, revision: str) -> str:
    folder = Path(location)
    if not folder.is_dir():
        return hashlib.sha256(f"{location}@{revision}".encode()).hexdigest()[:16]
    content = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json") and file.is_file():
            content.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            for part in _sampled(file) if file.suffix == ".safetensors" else [file.read_bytes()]:
                content.update(part)
    return content.hexdigest()[:16]


def _sampled(file: Path) -> Iterator[bytes]:
    """The header, which names every tensor with its place, and samples of each."""
    with file.open("rb") as stream:
        try:
            [length] = struct.unpack("<Q", stream.read(8))
            header = stream.read(length)
            places = [one["data_offsets"] for name, one in json.loads(header).items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
            # Not safetensors: loading it will say so.
            stream.seek(0)
            yield stream.read(3 * _SAMPLE)
            return
        yield header
        for start, end in sorted(places):
            for place in sorted({start, max(start, (start + end) // 2), max(start, end - _SAMPLE)}):
                stream.seek(8 + length + place)
                yield stream.read(min(_SAMPLE, end - place))


def forget() -> None:
    """Look at the files again: a base may have changed since."""
    _identity.cache_clear()
