"""Which base a run was made on: a hash of its content that needs no weights in memory."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from unimoer.config import ModelConfig
from unimoer.model.backbone import locate

_SAMPLE = 1 << 16
"""Bytes read from the start, the middle and the end of a weight file."""


def base_identity(config: ModelConfig) -> str:
    """Sixteen hex digits over the base's files; of a hub model that is not on this machine, over its name and revision.

    Large files are sampled: a different model, or another revision of it, differs in size or in what is sampled.
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
            content.update(_sampled(file))
    return content.hexdigest()[:16]


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    if size <= 3 * _SAMPLE:
        return file.read_bytes()
    parts = []
    with file.open("rb") as stream:
        for start in (0, size // 2, size - _SAMPLE):
            stream.seek(start)
            parts.append(stream.read(_SAMPLE))
    return b"".join(parts)


def forget() -> None:
    """Look at the files again: a base may have changed since."""
    _identity.cache_clear()
