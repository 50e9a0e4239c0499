"""Lines of plain and compressed files, with their numbers."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from unimoer.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line; bytes, because text mode would fail on bad UTF-8 without the line.

    Raises UserError for a file that cannot be read, a broken gzip file, and UTF-16, in which a line does not end at the
    byte of a line end.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for row, line in enumerate(file, 1):
                if row == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path}: is UTF-16; save it as UTF-8")
                yield row, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
