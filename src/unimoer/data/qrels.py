"""Files of judgements, as BEIR, TREC and the tools that write either leave them.

query-id <tab> corpus-id <tab> grade       with or without that header line; other names and orders by the header
query-id iteration document-id grade       TREC; blanks or tabs
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unimoer.data.collector import Collector, grade_of
from unimoer.data.lines import read_lines
from unimoer.errors import UserError

_SUFFIXES = (".tsv", ".qrels", ".txt")
_DEV = {"val", "valid", "validation", "development"}
"""Other names of `dev`."""
_SPLITS = {"train", "dev", "test", *_DEV}
_QUERY = {"query", "queryid", "qid", "topic", "topicid"}
_DOCUMENT = {"corpusid", "corpus", "document", "documentid", "doc", "docid", "docno", "did", "passageid", "pid"}
_GRADE = {"score", "grade", "relevance", "relevancy", "rel", "label", "judgement", "judgment"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Number of columns, which of them are wanted, and whether only a tab parts them."""

    columns: int
    query: int
    document: int
    grade: int
    tabs: bool = False

    def split(self, line: str) -> list[str]:
        if self.tabs and "\t" in line:
            return [field.strip() for field in line.rstrip().split("\t")]
        return line.split()

    def behind_row_names(self) -> _Layout:
        """The same with one unnamed column before it: a data frame's index, or R's row names."""
        return _Layout(self.columns + 1, self.query + 1, self.document + 1, self.grade + 1, self.tabs)


_LAYOUTS = {3: _Layout(3, 0, 1, 2), 4: _Layout(4, 0, 2, 3)}
_NUMBER = re.compile(r'"?[+-]?[0-9][0-9.eE+-]*"?')


def qrels_files(folder: Path) -> dict[str, Path]:
    """Split name -> file in `folder/qrels`; where several spell one split, the first of .tsv, .qrels, .txt, and of
    these the one that is not compressed.

    Raises UserError when there is none.
    """
    found: dict[str, Path] = {}
    for suffix in (end for base in _SUFFIXES for end in (base, f"{base}.gz")):
        for path in sorted((folder / "qrels").glob(f"*{suffix}")):
            split = path.name.removesuffix(suffix)
            # A text beside the judgements may be anything.
            if suffix.startswith(".txt") and (
                split.lower().startswith(("readme", "licen")) or (found and split not in _SPLITS)
            ):
                continue
            if path.is_file() and not path.name.startswith("."):
                found.setdefault("dev" if split in _DEV else split, path)
    if not found:
        raise UserError(f"{folder}: holds no qrels/*.tsv, .qrels or .txt, also .gz (query id, document id, grade)")
    return found


def read_qrels(path: Path, split: str, collector: Collector) -> None:
    """Add the judgements of one file.

    Raises UserError for a file that cannot be read, and reports every row with a problem. The first row that ends in a
    number tells the layout; where two rows before it are of none, the file is of another kind, and that is said once.
    """
    source = str(path)
    layout: _Layout | None = None
    headed = strange = False
    for row, line in _text_lines(path, collector):
        if layout is None:
            layout = _header(line)
            if layout is not None:
                headed = True
                continue
            layout = _headerless(line)
            if layout is None:
                collector.problems.all_doubtful = True
                if strange:
                    return
                strange = True
                fields = line.split()
                # TREC's second column is 0; other four words are no row of its.
                _report_row(collector, source, row, fields, 4 if len(fields) == 4 and fields[1] in ("0", "Q0") else 3)
                continue
        fields = layout.split(line)
        if headed and len(fields) == layout.columns + 1:
            layout = layout.behind_row_names()
        headed = False
        if len(fields) != layout.columns or not fields[layout.query] or not fields[layout.document]:
            _report_row(collector, source, row, [field for field in fields if field], layout.columns)
            collector.doubtful(fields[min(layout.query, len(fields) - 1)])
            continue
        collector.judgement(source, row, split, fields[layout.query], fields[layout.document], fields[layout.grade])


def _text_lines(path: Path, collector: Collector) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, decoded one by one."""
    for row, line in read_lines(path):
        try:
            text = line.decode("utf-8-sig" if row == 1 else "utf-8")
        except UnicodeDecodeError:
            collector.problems.add(f"{path}:{row}: is not valid UTF-8")
            collector.doubtful(next(iter(line.decode(errors="replace").split()), ""))
            continue
        if text.strip():
            yield row, text


def _header(line: str) -> _Layout | None:
    """The layout that a header names; None for a line of data.

    Only a header's own words count: a first line with a broken grade must not pass for a header.
    """
    tabs = "\t" in line
    fields = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (line.split("\t") if tabs else line.split()))
    # An index has no name, and numpy puts "# " before a header.
    names = [name for name in fields if name]
    if not names or grade_of(names[-1]) is not None:
        return None
    roles = [[place for place, name in enumerate(names) if name in role] for role in (_QUERY, _DOCUMENT, _GRADE)]
    if all(roles):
        return _Layout(len(names), roles[0][0], roles[1][0], roles[2][0], tabs)
    return _LAYOUTS.get(len(names)) if names[-1] in _GRADE else None


def _headerless(line: str) -> _Layout | None:
    """The layout of a row that ends in a number, be it a grade or not; None for another row."""
    fields = line.split()
    layout = _LAYOUTS.get(len(fields))
    return layout if layout is not None and _NUMBER.fullmatch(fields[layout.grade]) else None


def _report_row(collector: Collector, source: str, row: int, fields: list[str], needed: int = 3) -> None:
    if len(fields) == needed:
        problem = f"the grade must be a whole number, found {fields[-1]!r}"
    else:
        found = f"has {len(fields)} field{'s' if len(fields) != 1 else ''}"
        trec = ", or the 4 of TREC" if needed == 3 else ""
        problem = f"{found}; {needed} are needed: query id, document id, grade{trec}"
    collector.problems.add(f"{source}:{row}: {problem}")
