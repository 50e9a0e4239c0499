"""The BEIR folder layout, read line by line with the file and line of every mistake, and written atomically.

corpus.jsonl[.gz]    {"_id": ..., "title": ..., "text": ...}     title optional
queries.jsonl[.gz]   {"_id": ..., "text": ...}
qrels/SPLIT.tsv[.gz] query-id <tab> corpus-id <tab> integer grade, with or without that header line; see qrels.py
families.jsonl[.gz]  {"_id": ..., "family": ...}                 optional, and ours: relatives of documents
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unimoer.assets import staged
from unimoer.data.collector import Collector, Kind, Problems, id_of
from unimoer.data.lines import read_lines
from unimoer.data.qrels import qrels_files, read_qrels
from unimoer.errors import UserError
from unimoer.types import RetrievalDataset

_ID = re.compile(rb'"_?id"\s*:\s*("(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.0+)?(?=\s*[,}]))')


def read_beir(folder: Path, *, name: str | None = None, problems: Problems | None = None) -> RetrievalDataset:
    """Read a BEIR folder; `name` is the folder's own unless given.

    Raises UserError when it is no such folder, and for the first problem in it. With `problems` that collect, reading
    goes on, and rows with a problem are left out of what is returned.
    """
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist")
    corpus, queries, qrels = _find(folder, "corpus.jsonl"), _find(folder, "queries.jsonl"), qrels_files(folder)
    collector = Collector(name or folder.resolve().name, problems)
    for row, record in _records(corpus, "document", collector):
        collector.document(str(corpus), row, record)
    for row, record in _records(queries, "query", collector):
        collector.query(str(queries), row, record)
    families = _path(folder, "families.jsonl")
    for row, record in _records(families, "document", collector) if families else ():
        collector.family(str(families), row, record)
    collector.require_texts(str(folder))
    for split, path in qrels.items():
        read_qrels(path, split, collector)
    return collector.build(str(folder))


def write_beir(dataset: RetrievalDataset, folder: Path) -> None:
    """Write a BEIR folder that appears complete or not at all.

    Raises FileExistsError when `folder` exists and is not empty, UserError when it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' exists and is not empty")
    with staged(folder) as temporary:
        (temporary / "qrels").mkdir(parents=True)
        _write_jsonl(
            temporary / "corpus.jsonl",
            ({"_id": key, "title": item.title, "text": item.text} for key, item in dataset.corpus.items()),
        )
        _write_jsonl(temporary / "queries.jsonl", ({"_id": k, "text": text} for k, text in dataset.queries.items()))
        if dataset.families:
            families = ({"_id": key, "family": family} for key, family in dataset.families.items())
            _write_jsonl(temporary / "families.jsonl", families)
        for split, qrels in dataset.qrels.items():
            with (temporary / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as file:
                file.write("query-id\tcorpus-id\tscore\n")
                for query_id, grades in qrels.items():
                    file.writelines(f"{query_id}\t{key}\t{grade}\n" for key, grade in grades.items())


def _write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _find(folder: Path, name: str) -> Path:
    path = _path(folder, name)
    if path is not None:
        return path
    raise UserError(f"{folder}: holds no {name} or {name}.gz, so it is no data set in BEIR layout")


def _path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _records(path: Path, kind: Kind, collector: Collector) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and JSON object of each line; others are reported.

    Raises UserError for a file of another kind: one JSON document over several lines, or no object in three lines.
    """
    seen = False
    first: list[str] = []
    for row, line in read_lines(path):
        text = line.strip()
        if not text:
            continue
        if row == 1 and text.removeprefix(BOM_UTF8) in (b"[", b"{"):
            raise UserError(f"{path}: is one JSON document; each line must be a JSON object of its own")
        record, problem = _parsed(line)
        if record is not None:
            # What stands before the first object is only told now: of a file of another kind it would be every line.
            while first:
                collector.problems.add(first.pop(0))
            seen = True
            yield row, record
            continue
        collector.lose(kind, _salvaged_id(line))
        if seen:
            collector.problems.add(f"{path}:{row}: {problem}")
        else:
            first.append(f"{path}:{row}: {problem}")
        if len(first) == 3:
            raise UserError(first[0])
    for problem in first:
        collector.problems.add(problem)


def _parsed(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The JSON object in a line, or None and what is wrong."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return None, "is not valid UTF-8"
    except (ValueError, RecursionError) as error:
        return None, f"is not valid JSON: {error}"
    if not isinstance(record, dict):
        return None, f"must be a JSON object, found {type(record).__name__}"
    return record, ""


def _salvaged_id(line: bytes) -> str | None:
    """The id in a line that is no JSON, so that its judgements are not reported after it."""
    match = _ID.search(line)
    try:
        return id_of(json.loads(match[1])) if match else None
    except ValueError:
        return None
