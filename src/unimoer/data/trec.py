"""Rankings as files in TREC's form, which every engine writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from unimoer.errors import UserError
from unimoer.files import write_text
from unimoer.types import Run


def write_trec(run: Run, path: Path, tag: str) -> None:
    """Write `query Q0 document rank score tag` lines, best first, atomically; scores survive the round trip exactly.

    Raises UserError for an id with white space, which the format cannot hold, and for a file that cannot be written.
    """
    tag = "-".join(tag.split()) or "run"
    lines: list[str] = []
    for query, documents in run.items():
        scores = finite(query, documents)
        order = sorted(scores, key=lambda document: (scores[document], document.encode()), reverse=True)
        for rank, document in enumerate(order, start=1):
            for name in (query, document):
                if name.split() != [name]:
                    raise UserError(f"{path}: the id {name!r} has white space; TREC run files cannot hold it")
            lines.append(f"{query} Q0 {document} {rank} {scores[document]!r} {tag}\n")
    write_text(path, "".join(lines))


def read_trec(path: Path) -> dict[str, dict[str, float]]:
    """Read a TREC run file. The rank column is ignored, as trec_eval ignores it: the scores decide.

    Raises UserError that names the file and line for a missing file, a broken line, or a document listed twice.
    """
    run: dict[str, dict[str, float]] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such run file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; name one run file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 6:
            raise UserError(f"{path}:{number}: expected 'query Q0 document rank score tag', found {len(fields)} fields")
        query, _, document, _, score, _ = fields
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{path}:{number}: the score {score!r} is not a finite number")
        documents = run.setdefault(query, {})
        if document in documents:
            raise UserError(f"{path}:{number}: document {document!r} is listed twice for query {query!r}")
        documents[document] = value
    return run


def finite(query: str, documents: Mapping[str, float]) -> dict[str, float]:
    """Scores as Python floats. Raises ValueError for one that is not finite."""
    # pytrec_eval takes only Python floats, and ranks NaN somewhere without a word.
    scores = {document: float(score) for document, score in documents.items()}
    for document, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"query {query!r}, document {document!r}: the score is {score}")
    return scores
