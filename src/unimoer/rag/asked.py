"""What an experiment asks, as two files: a sample of questions, and the passages that every system searches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from pathlib import Path
from typing import Any

from unimoer.config import QuestionsConfig
from unimoer.data.lines import read_lines
from unimoer.errors import UserError
from unimoer.rag.questions import Passages, load_questions, read_questions
from unimoer.schema import RagQuestion
from unimoer.schema.rag import RagAsked

ASKED = "asked"
"""The folder in the experiment's."""
ABSENT = "a passage that is said to answer is not among the passages"


def write_asked(name: str, config: QuestionsConfig, seed: int, folder: Path) -> RagAsked:
    """Sample, and write `NAME.questions.jsonl` and `NAME.passages.jsonl`; what they hold.

    Samples are by hash: the same on every machine, and a larger one contains the smaller.

    Raises:
        UserError: the source is wrong, or a sample of passages may hold no answer.
    """
    found = load_questions(config)
    questions = found.questions
    if config.sample is not None:
        chosen = set(_sample((one.id for one in questions), config.sample, f"question {seed}"))
        questions = [one for one in questions if one.id in chosen]
    if not questions:
        raise UserError(f"questions.{name}: no question is left to ask")
    kept: set[str] | None = None
    if config.documents is not None:
        kept = {key for one in questions for key in one.passages}
        if not kept:
            raise UserError(
                f"questions.{name}.documents: nobody says which passages answer, so a sample may hold none that does; "
                "leave it out"
            )
        others = (key for key, _ in found.passages(questions) if key not in kept)
        kept.update(_sample(others, max(0, config.documents - len(kept)), f"passage {seed}"))
    passages = (pair for pair in found.passages(questions) if kept is None or pair[0] in kept)
    there, digest = _write_passages(folder / f"{name}.passages.jsonl", passages)
    left_out = dict(found.left_out)
    if absent := sum(key not in there for one in questions for key in one.passages):
        left_out[ABSENT] = absent
    content = b"".join(
        json.dumps(
            {**one.model_dump(exclude_none=True), "passages": [key for key in one.passages if key in there]},
            ensure_ascii=False,
        ).encode()
        + b"\n"
        for one in questions
    )
    (folder / f"{name}.questions.jsonl").write_bytes(content)
    digest.update(content)
    return RagAsked(questions=len(questions), passages=len(there), fingerprint=digest.hexdigest(), left_out=left_out)


def _write_passages(path: Path, passages: Passages) -> tuple[set[str], Any]:
    """Ids, and a running SHA-256 over the file."""
    there: set[str] = set()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for key, text in passages:
            there.add(key)
            line = json.dumps({"id": key, "text": text}, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            digest.update(line)
    return there, digest


def read_asked(folder: Path, name: str) -> tuple[list[RagQuestion], Passages]:
    """What `write_asked` wrote; passages are read as they are asked for."""
    return read_questions(folder / f"{name}.questions.jsonl"), _passages(folder / f"{name}.passages.jsonl")


def _passages(path: Path) -> Iterator[tuple[str, str]]:
    for _, line in read_lines(path):
        record = json.loads(line)
        yield record["id"], record["text"]


def _sample(keys: Iterable[str], count: int, salt: str) -> list[str]:
    """Those with the smallest hashes."""
    return nsmallest(count, keys, key=lambda key: (hashlib.sha1(f"{salt}|{key}".encode()).digest(), key))
