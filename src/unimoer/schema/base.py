"""The base of every file that this package writes, and how one is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unimoer.errors import UserError
from unimoer.files import write_text

Interval = tuple[float | None, float | None]
"""Both ends of a 95% interval; None where it is undefined."""


class Record(BaseModel):
    """Unknown fields are errors: a file of another version is refused, not half understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(Record):
    """One number of a study, over its seeds; undefined numbers are None."""

    mean: float | None
    std: float | None = None
    """Sample standard deviation over seeds; None for a single one."""
    ci95: Interval = (None, None)
    per_seed: dict[str, float | None] = {}

    @property
    def low(self) -> float | None:
        return self.ci95[0]

    @property
    def high(self) -> float | None:
        return self.ci95[1]


FoundRecord = TypeVar("FoundRecord", bound=Record)


def read_record(model: type[FoundRecord], path: Path, hint: str = "") -> FoundRecord:
    """Read and check a JSON file.

    Raises:
        UserError: it is missing, broken or of another version, in one line that names file, line or field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing{hint and f'; {hint}'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg}") from None
    return parse_record(model, content, str(path))


def parse_record(model: type[FoundRecord], content: Any, where: str) -> FoundRecord:
    """Check plain data; `where` names its origin in the error."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {field}: {what}; was it written by another version of unimoer?") from None


def write_record(path: Path, record: Record) -> None:
    """Replace `path` atomically; NaN is refused rather than written.

    Fields and keys stay in their own order: arms and variants are listed in that of the plan.
    """
    content = record.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_lines(model: type[FoundRecord], path: Path, identity: Sequence[str]) -> list[FoundRecord]:
    """Lines of a JSONL log, one for each value of the `identity` fields, in the order of their first appearance.

    A run that was killed and resumed may have logged a step twice, or left half a line: the later line counts and the
    half is dropped, so that the result is that of an uninterrupted run. A log that does not exist is empty.
    """
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], FoundRecord] = {}
    # Not splitlines: it would also split at the line separators that a name may contain.
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(content, Mapping) and all(key in content for key in identity):
            found[tuple(content[key] for key in identity)] = parse_record(model, dict(content), str(path))
    return list(found.values())
