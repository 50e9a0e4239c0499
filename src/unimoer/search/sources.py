"""What people have to search: a JSONL file, a folder of text and Markdown files, or a data set known already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unimoer.data.formats import load_source
from unimoer.errors import UserError

Documents = Iterator[tuple[str, str]]
"""Id and content, one after the other."""

IDS = ("_id", "id", "docid", "doc_id")
TEXTS = ("text", "contents", "content", "body")
"""Fields that tools write a document's id and text into; the first that is there counts. A title goes first."""
SUFFIXES = (".txt", ".md", ".markdown")


def read_documents(source: str) -> Documents:
    """Documents of a `.jsonl` file, of a folder of text and Markdown files, whose ids are their paths in it, of a
    folder in BEIR layout, or of `embedded:NAME`, `hf:ID` and `ir:ID`.

    Texts are read as they are asked for, except those of data sets. Ids may come twice: the later text replaces the
    earlier one, as in an index.

    Raises:
        UserError: there is nothing of that name, or the first thing wrong in it, with file and line.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (".jsonl", ".ndjson", ".json"):
            raise UserError(f"{source}: is one file that is not .jsonl; give the folder that it lies in")
        return _lines(path)
    if path.is_dir() and not (path / "corpus.jsonl").exists() and not (path / "corpus.jsonl.gz").exists():
        return _files(path)
    if path.is_dir() or ":" in source:
        return _data_set(source)
    raise UserError(f"{source}: no such file or folder; a .jsonl, a folder of texts or of BEIR files, or embedded:NAME")


def _data_set(source: str) -> Documents:
    dataset = load_source("documents", source)
    return ((key, document.content) for key, document in dataset.corpus.items())


def _lines(path: Path) -> Documents:
    number = 0
    with path.open("rb") as file:
        for row, line in enumerate(file, 1):
            if line.strip():
                number = row
                yield _record(f"{path}:{row}", _decoded(f"{path}:{row}", line))
    if number == 0:
        raise UserError(f"{path}: no document in it")


def _decoded(where: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _whole(where: str, text: str) -> str:
    """Raises: UserError for half of a surrogate pair, which JSON and names of files can hold and text cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no text") from None
    return text


def _record(where: str, line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be a JSON object, found {type(record).__name__}")
    key = _field(where, record, IDS, lambda value: isinstance(value, str | int) and not isinstance(value, bool), "id")
    text = _field(where, record, TEXTS, lambda value: isinstance(value, str), "text")
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise UserError(f"{where}: 'title' is {type(title).__name__}, not text")
    if key == "":
        raise UserError(f"{where}: its id is empty")
    return _whole(where, str(key)), _whole(where, f"{title}\n{text}" if title else text)


def _field(where: str, record: Mapping[str, Any], names: Sequence[str], fits: Callable[[Any], bool], what: str) -> Any:
    for name in names:
        if name in record:
            if not fits(record[name]):
                raise UserError(f"{where}: '{name}' is {type(record[name]).__name__}, no {what}")
            return record[name]
    raise UserError(f"{where}: has no {what}; looked for {', '.join(names)}")


def _files(folder: Path) -> Documents:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{folder}: no {', '.join(SUFFIXES)} file in it, and no corpus.jsonl")
    for path in found:
        name = path.relative_to(folder).as_posix()
        yield _whole(repr(str(path)), name), _decoded(str(path), path.read_bytes())
