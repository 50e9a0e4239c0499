"""The BEIR folder layout, read line by line with the file and line of every mistake, and written atomically.

corpus.jsonl[.gz]    {"_id": ..., "title": ..., "text": ...}     title optional
queries.jsonl[.gz]   {"_id": ..., "text": ...}
qrels/SPLIT.tsv[.gz] query-id <tab> corpus-id <tab> integer grade, with or without that header line
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from unimoer.assets import staged
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset

Report = Callable[[str], object]
"""Takes one problem as one line. `fail` raises it; a list's `append` collects it and reading goes on."""

_SPLIT_ORDER = ("train", "dev", "test")
_GRADE_HEADERS = {"score", "grade", "relevance", "rel", "label"}


def fail(problem: str) -> NoReturn:
    """The `Report` that stops at the first problem."""
    raise UserError(problem)


class Collector:
    """Builds a RetrievalDataset row by row: documents, then queries, then judgements.

    `source` and `row` of each call say where the row stands; they are only formatted when there is a problem.
    """

    def __init__(self, name: str, report: Report = fail) -> None:
        self.name = name
        self.report = report
        self.corpus: dict[str, Document] = {}
        self.queries: dict[str, str] = {}
        self.qrels: dict[str, dict[str, dict[str, int]]] = {}

    def document(self, source: str, row: int, record: Mapping[str, Any]) -> None:
        document_id = self._id(source, row, record)
        text = self._text(source, row, record, "text")
        title = "" if record.get("title") is None else self._text(source, row, record, "title")
        if document_id is None or text is None or title is None:
            return
        if document_id in self.corpus:
            self.report(f"{source}:{row}: duplicate document id '{document_id}'")
            return
        self.corpus[document_id] = Document(text, title)

    def query(self, source: str, row: int, record: Mapping[str, Any]) -> None:
        query_id = self._id(source, row, record)
        text = self._text(source, row, record, "text")
        if query_id is None or text is None:
            return
        if query_id in self.queries:
            self.report(f"{source}:{row}: duplicate query id '{query_id}'")
        elif not text.strip():
            self.report(f"{source}:{row}: the text of query '{query_id}' is empty")
        else:
            self.queries[query_id] = text

    def judgement(self, source: str, row: int, split: str, query_id: str, document_id: str, grade: int) -> None:
        if query_id not in self.queries:
            self.report(f"{source}:{row}: query '{query_id}' is judged but is not among the queries")
        if document_id not in self.corpus:
            self.report(f"{source}:{row}: document '{document_id}' is judged but is not in the corpus")
        if query_id not in self.queries or document_id not in self.corpus:
            return
        grades = self.qrels.setdefault(split, {}).setdefault(query_id, {})
        if grades.setdefault(document_id, grade) != grade:
            self.report(
                f"{source}:{row}: document '{document_id}' is judged {grade} for query '{query_id}', "
                f"and {grades[document_id]} before"
            )

    def require_texts(self, source: str) -> None:
        """Raises UserError where no document or no query was read: every judgement would be reported after it."""
        if not self.corpus:
            fail(f"{source}: the corpus is empty")
        if not self.queries:
            fail(f"{source}: there are no queries")

    def build(self, source: str, notes: str = "") -> RetrievalDataset:
        """The data set, splits in the order train, dev, test, others; reports one without any relevant document."""
        if not any(
            grade > 0 for split in self.qrels.values() for grades in split.values() for grade in grades.values()
        ):
            self.report(f"{source}: no query has a relevant document")
        known = [split for split in _SPLIT_ORDER if split in self.qrels]
        order = known + sorted(self.qrels.keys() - set(known))
        return RetrievalDataset(
            self.name, self.corpus, self.queries, {split: self.qrels[split] for split in order}, notes
        )

    def _id(self, source: str, row: int, record: Mapping[str, Any]) -> str | None:
        value = self._text(source, row, record, "_id")
        # TREC run files separate their fields by white space, so such an id could not be evaluated.
        if value is not None and value.split() != [value]:
            self.report(f"{source}:{row}: field '_id' is {value!r}: an id must not be empty or hold white space")
            return None
        return value

    def _text(self, source: str, row: int, record: Mapping[str, Any], field: str) -> str | None:
        if field not in record:
            self.report(f"{source}:{row}: field '{field}' is missing")
            return None
        value = record[field]
        if not isinstance(value, str):
            self.report(f"{source}:{row}: field '{field}' must be a string, found {type(value).__name__}")
            return None
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                # JSON can spell half a surrogate pair; hashing or tokenising it would fail much later.
                self.report(f"{source}:{row}: field '{field}' holds a character that is not valid Unicode")
                return None
        return value


def read_beir(folder: Path, *, name: str | None = None, report: Report = fail) -> RetrievalDataset:
    """Read a BEIR folder; `name` is the folder's own unless given.

    Raises UserError when it is no such folder, and for the first problem in it. With a `report` that collects, reading
    goes on, and rows with a problem are left out of what is returned.
    """
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist")
    corpus, queries, qrels = _find(folder, "corpus.jsonl"), _find(folder, "queries.jsonl"), _qrels_files(folder)
    collector = Collector(name or folder.resolve().name, report)
    for row, record in _json_lines(corpus, report):
        collector.document(str(corpus), row, record)
    for row, record in _json_lines(queries, report):
        collector.query(str(queries), row, record)
    collector.require_texts(str(folder))
    for split, path in qrels.items():
        for row, query_id, document_id, grade in _judgements(path, report):
            collector.judgement(str(path), row, split, query_id, document_id, grade)
    return collector.build(str(folder))


def write_beir(dataset: RetrievalDataset, folder: Path) -> None:
    """Write a BEIR folder that appears complete or not at all.

    Raises FileExistsError when `folder` exists and is not empty, UserError when it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' exists and is not empty")
    with staged(folder) as temporary:
        (temporary / "qrels").mkdir(parents=True)
        with (temporary / "corpus.jsonl").open("w", encoding="utf-8") as file:
            for key, document in dataset.corpus.items():
                record = {"_id": key, "title": document.title, "text": document.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        with (temporary / "queries.jsonl").open("w", encoding="utf-8") as file:
            for key, text in dataset.queries.items():
                file.write(json.dumps({"_id": key, "text": text}, ensure_ascii=False) + "\n")
        for split, qrels in dataset.qrels.items():
            with (temporary / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as file:
                file.write("query-id\tcorpus-id\tscore\n")
                for query_id, grades in qrels.items():
                    file.writelines(f"{query_id}\t{key}\t{grade}\n" for key, grade in grades.items())


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder}: holds no {name} or {name}.gz, so it is no data set in BEIR layout")


def _qrels_files(folder: Path) -> dict[str, Path]:
    """Split name -> file; of `x.tsv` and `x.tsv.gz` the first is read."""
    found: dict[str, Path] = {}
    for pattern, suffix in (("*.tsv", ".tsv"), ("*.tsv.gz", ".tsv.gz")):
        for path in sorted((folder / "qrels").glob(pattern)):
            found.setdefault(path.name.removesuffix(suffix), path)
    if not found:
        raise UserError(f"{folder}: holds no qrels/*.tsv or qrels/*.tsv.gz (query id, document id, grade)")
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line; bytes, because text mode would fail on bad UTF-8 without the line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from enumerate(file, 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is not a whole gzip file: {error}") from error


def _json_lines(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, line in _lines(path):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            report(f"{path}:{row}: is not valid UTF-8")
        except (ValueError, RecursionError) as error:
            report(f"{path}:{row}: is not valid JSON: {error}")
        else:
            if isinstance(record, dict):
                yield row, record
            else:
                report(f"{path}:{row}: must be a JSON object, found {type(record).__name__}")


def _judgements(path: Path, report: Report) -> Iterator[tuple[int, str, str, int]]:
    """Line number, query id, document id, grade."""
    for row, line in _lines(path):
        if line.isspace():
            continue
        try:
            fields = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            report(f"{path}:{row}: is not valid UTF-8")
            continue
        if len(fields) != 3:
            report(f"{path}:{row}: has {len(fields)} tab-separated fields; 3 are needed: query id, document id, grade")
            continue
        query_id, document_id, grade = fields
        # Only a header's own words are skipped: a first line with a broken grade must not pass for a header.
        if row == 1 and grade.strip().lower() in _GRADE_HEADERS:
            continue
        try:
            yield row, query_id, document_id, int(grade)
        except ValueError:
            report(f"{path}:{row}: the grade must be a whole number, found '{grade}'")
