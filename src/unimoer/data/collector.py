"""Rows in, a RetrievalDataset out: what every source's rows must be, and what becomes of those that are not so.

A problem is raised at once or collected, one line for each fault. A lapse is a judgement that can be left out and does
no harm to the others, as public data sets have them: lapses are counted, and become warnings of the data set.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset

Kind = Literal["document", "query"]

_SPLIT_ORDER = ("train", "dev", "test")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_EXACT = 2**53
"""Whole numbers below it are told apart by a float."""

_REMEDIES = {
    "unknown query": "left out",
    "unknown document": "left out",
    "repeated": "kept once",
    "contradictory": "the highest grade is kept",
}


class Problems:
    """What is wrong with a source: the first problem is raised, or, with `collect`, all are kept in `lines`.

    With `strict`, lapses are problems. A fault that runs through a file is one line with a count.
    """

    def __init__(self, *, collect: bool = False, strict: bool = False) -> None:
        self.collect = collect
        self.strict = strict
        self._found: dict[str, tuple[str, int]] = {}
        self.doubtful: set[str] = set()
        """Queries that lost a judgement to a fault already told: what they lack follows from it."""
        self.all_doubtful = False
        """Any query may be one of these: a fault does not say which."""
        self._lapses: dict[tuple[str, str], tuple[str, int]] = {}

    def add(self, line: str) -> None:
        """Raises UserError unless problems are collected."""
        if not self.collect:
            raise UserError(line)
        first, count = self._found.get(_kind_of(line), (line, 0))
        self._found[_kind_of(line)] = first, count + 1

    @property
    def lines(self) -> list[str]:
        """The first of each kind, with the number of such lines."""
        return [f"{first} ({count:,} such lines)" if count > 1 else first for first, count in self._found.values()]

    def lapse(self, kind: str, source: str, row: int, text: str) -> None:
        """Count one judgement of a kind of `_REMEDIES`; those of one kind and source share a warning."""
        line = f"{source}:{row}: {text}"
        if self.strict:
            self.add(line)
            return
        first, count = self._lapses.get((kind, source), (line, 0))
        self._lapses[kind, source] = first, count + 1

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(
            f"{first} ({_REMEDIES[kind]}{f'; {count:,} such judgements' if count > 1 else ''})"
            for (kind, _), (first, count) in self._lapses.items()
        )


def _kind_of(line: str) -> str:
    """A problem without its row, and without the ids and values in it; the name of a field stays."""
    where, _, what = re.sub(r":\d+: ", ":: ", line, count=1).partition(":: ")
    return where + re.sub(r"(?<!field )'[^']*'|found .*", "*", what)


class Collector:
    """Builds a RetrievalDataset row by row: documents, then queries, then judgements.

    `source` and `row` of each call say where the row stands; they are only formatted when there is a problem.
    """

    def __init__(self, name: str, problems: Problems | None = None) -> None:
        self.name = name
        self.problems = problems or Problems()
        self.corpus: dict[str, Document] = {}
        self.queries: dict[str, str] = {}
        self.qrels: dict[str, dict[str, dict[str, int]]] = {}
        self.families: dict[str, str] = {}
        self._lost: dict[Kind, set[str]] = {"document": set(), "query": set()}
        self._nameless: Counter[Kind] = Counter()

    def document(self, source: str, row: int, record: Mapping[str, Any]) -> None:
        document_id = self._id("document", source, row, record)
        if document_id is None:
            return
        text = self._text(source, row, record, "text")
        title = None if text is None else self._title(source, row, record)
        if text is None or title is None:
            self.lose("document", document_id)
        elif document_id in self.corpus:
            self.problems.add(f"{source}:{row}: duplicate document id '{document_id}'")
            self.lose("document", None)
        else:
            self.corpus[document_id] = Document(text, title)

    def query(self, source: str, row: int, record: Mapping[str, Any]) -> None:
        query_id = self._id("query", source, row, record)
        if query_id is None:
            return
        text = self._text(source, row, record, "text")
        if text is None:
            self.lose("query", query_id)
        elif query_id in self.queries:
            self.problems.add(f"{source}:{row}: duplicate query id '{query_id}'")
            self.lose("query", None)
        elif not text.strip():
            self.problems.add(f"{source}:{row}: the text of query '{query_id}' is empty")
            self.lose("query", query_id)
        else:
            self.queries[query_id] = text

    def family(self, source: str, row: int, record: Mapping[str, Any]) -> None:
        document_id = self._id("document", source, row, record)
        family = None if document_id is None else self._text(source, row, record, "family")
        if document_id is None or family is None:
            return
        if document_id in self.corpus:
            self.families[document_id] = family
        elif not self._excused("document", document_id):
            self.problems.add(f"{source}:{row}: document '{document_id}' has a family but is not in the corpus")

    def lose(self, kind: Kind, key: str | None) -> None:
        """Note a row that a problem kept out, with its id where that could be read: its judgements say no more of it.

        For a row without a readable id, the next unknown id is taken to be its own.
        """
        if key is None:
            self._nameless[kind] += 1
        else:
            self._lost[kind].add(key)

    def judgement(self, source: str, row: int, split: str, query: object, document: object, grade: object) -> None:
        query_id, document_id, value = id_of(query), id_of(document), grade_of(grade)
        if query_id is None or document_id is None or value is None:
            if value is None:
                self.problems.add(f"{source}:{row}: the grade must be a whole number, found {grade!r}")
            else:
                wrong = query if query_id is None else document
                self.problems.add(f"{source}:{row}: an id must be a string or a whole number, found {wrong!r}")
            if query_id is not None:
                self.doubtful(query_id)
            return
        query_id, document_id = _known(query_id, self.queries), _known(document_id, self.corpus)
        if query_id not in self.queries or document_id not in self.corpus:
            self.doubtful(query_id)
            self._dangling(source, row, query_id, document_id)
            return
        grades = self.qrels.setdefault(split, {}).setdefault(query_id, {})
        before = grades.get(document_id)
        if before is None:
            grades[document_id] = value
            return
        text = f"document '{document_id}' is judged {value} for query '{query_id}', "
        if before == value:
            self.problems.lapse("repeated", source, row, f"{text}as before")
        else:
            self.problems.lapse("contradictory", source, row, f"{text}and {before} before")
            grades[document_id] = max(before, value)

    def doubtful(self, query_id: str) -> None:
        """Note a query whose judgement a problem kept out; of an id that says nothing, it may be any."""
        query_id = _known(query_id, self.queries)
        self.problems.doubtful.add(query_id)
        self.problems.all_doubtful |= query_id not in self.queries

    def require_texts(self, source: str) -> None:
        """Raises UserError where no document or no query was read and no problem says why."""
        if self.problems.lines:
            return
        if not self.corpus:
            raise UserError(f"{source}: the corpus is empty")
        if not self.queries:
            raise UserError(f"{source}: there are no queries")

    def build(self, source: str) -> RetrievalDataset:
        """The data set, splits in the order train, dev, test, others; reports one without any relevant document."""
        grades = (grade for split in self.qrels.values() for found in split.values() for grade in found.values())
        warnings = self.problems.warnings
        if not any(grade > 0 for grade in grades):
            if not self.problems.lines:
                self.problems.add("; ".join([f"{source}: no query has a relevant document", *warnings]))
            self.problems.all_doubtful = True
            warnings = ()
        known = [split for split in _SPLIT_ORDER if split in self.qrels]
        order = known + sorted(self.qrels.keys() - set(known))
        qrels = {split: self.qrels[split] for split in order}
        return RetrievalDataset(self.name, self.corpus, self.queries, qrels, families=self.families, warnings=warnings)

    def _dangling(self, source: str, row: int, query_id: str, document_id: str) -> None:
        """Report a judgement of an unknown query or document, or of both, unless a problem told already explains it."""
        unknown: list[tuple[Kind, str, str]] = []
        if query_id not in self.queries:
            unknown.append(("query", query_id, "among the queries"))
        if document_id not in self.corpus:
            unknown.append(("document", document_id, "in the corpus"))
        if not any(self._excused(kind, key) for kind, key, _ in unknown):
            kind, key, place = unknown[0]
            self.problems.lapse(f"unknown {kind}", source, row, f"{kind} '{key}' is judged but is not {place}")

    def _excused(self, kind: Kind, key: str) -> bool:
        """Whether a row that was lost to a problem is, or may be, the one of this id."""
        lost = self._lost[kind]
        if _known(key, lost) in lost:
            return True
        if self._nameless[kind] == 0:
            return False
        self._nameless[kind] -= 1
        lost.add(key)
        return True

    def _id(self, kind: Kind, source: str, row: int, record: Mapping[str, Any]) -> str | None:
        field = "_id" if "_id" in record or "id" not in record else "id"
        if field not in record:
            self.problems.add(f"{source}:{row}: field '_id' is missing")
        elif (key := id_of(record[field])) is None:
            value = record[field]
            found = value if isinstance(value, float) else type(value).__name__
            self.problems.add(f"{source}:{row}: field '{field}' must be a string or a whole number, found {found}")
        # TREC run files separate their fields by white space, so such an id could not be evaluated.
        elif key.split() != [key]:
            problem = f"field '{field}' is {key!r}: an id must not be empty or hold white space"
            self.problems.add(f"{source}:{row}: {problem}")
        elif self._encodes(source, row, field, key):
            return key
        self.lose(kind, None)
        return None

    def _title(self, source: str, row: int, record: Mapping[str, Any]) -> str | None:
        title = record.get("title")
        # `json.dumps` of a data frame's row writes NaN for a missing title.
        if title is None or (isinstance(title, float) and math.isnan(title)):
            return ""
        return self._text(source, row, record, "title")

    def _text(self, source: str, row: int, record: Mapping[str, Any], field: str) -> str | None:
        if field not in record:
            self.problems.add(f"{source}:{row}: field '{field}' is missing")
            return None
        value = record[field]
        if not isinstance(value, str):
            self.problems.add(f"{source}:{row}: field '{field}' must be a string, found {type(value).__name__}")
            return None
        return value if self._encodes(source, row, field, value) else None

    def _encodes(self, source: str, row: int, field: str, value: str) -> bool:
        if value.isascii():
            return True
        try:
            value.encode()
        except UnicodeEncodeError:
            # JSON can spell half a surrogate pair; hashing or tokenising it would fail much later.
            self.problems.add(f"{source}:{row}: field '{field}' holds a character that is not valid Unicode")
            return False
        return True


def id_of(value: object) -> str | None:
    """An id as text: a whole number is what its digits say, also one that a data frame stored as a float."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not (value.is_integer() and abs(value) < _EXACT):
        return None
    return str(int(value))


def grade_of(value: object) -> int | None:
    """A grade that is a whole number, however it is written (`1`, `1.0`, `"1"`, `1.000e+00`); None for any other."""
    if isinstance(value, str):
        text = value.strip().strip('"')
        if not _NUMBER.fullmatch(text):
            return None
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _EXACT or value != int(value):
        return None
    return int(value)


def _known(key: str, known: Collection[str]) -> str:
    """The spelling of an id that is known, of those that tools give it; as written where none is, and where it is."""
    return key if key in known else next((spelling for spelling in _spellings(key) if spelling in known), key)


def _spellings(key: str) -> Iterator[str]:
    """Without the quotes that CSV writers put around it; with and without the `.0` of a number stored as a float."""
    bare = key[1:-1].replace('""', '"') if len(key) > 2 and key[0] == key[-1] == '"' else key
    yield bare
    if bare.endswith(".0"):
        yield bare[:-2]
    elif bare.isdecimal():
        yield f"{bare}.0"
