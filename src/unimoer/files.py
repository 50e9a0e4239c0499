"""Writing that survives a kill: a file is either the old one or the whole new one."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from unimoer.errors import UserError


def _unwritten(path: Path, error: OSError) -> UserError:
    # NumPy's own errors of a full disk have no words of the system.
    return UserError(f"{path}: cannot be written: {error.strerror or error}; free space or choose another folder")


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """Replace `path` atomically with sorted, indented JSON; NaN is refused rather than written."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises: UserError when the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text: {error.reason} at byte {error.start}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        # Not tempfile.mkdtemp, whose folders only their owner can read.
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Have all files of a folder on the disk before anything names them."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """A new `.npy` file, mapped for writing, whose space on the disk is already its own.

    Raises:
        UserError: there is not enough space. Without this, the process would die of SIGBUS in the middle of the array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Asked first: an allocation that fails fills the disk before it does.
    if size > shutil.disk_usage(path.parent).free:
        raise UserError(f"{path}: {size / 1e9:,.1f} GB do not fit on the disk; free space or choose another folder")
    array: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if size and hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + size)
    return array
