"""Questions out of their source, with the passages that are searched for them.

A source is one function here and one line in `SOURCES`; anything else is a `.jsonl` file, a line a question:
{"id": ..., "question": ..., "answers": [...]}, and where they are known "passages": [ids] and "query".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from unimoer.config import QuestionsConfig
from unimoer.data.collector import id_of
from unimoer.data.lines import read_lines
from unimoer.errors import UserError
from unimoer.rag.domains import embedded_questions
from unimoer.rag.hub import hf_questions, ir_questions
from unimoer.schema import RagQuestion
from unimoer.search import read_documents

Passages = Iterable[tuple[str, str]]
"""Id and content, one after the other."""


@dataclass(frozen=True)
class QuestionSet:
    questions: list[RagQuestion]
    passages: Callable[[Collection[RagQuestion]], Passages]
    """Of the questions that are asked; they are read anew at every call."""
    left_out: dict[str, int] = field(default_factory=dict)


def _embedded(config: QuestionsConfig, source: str) -> QuestionSet:
    questions, dataset, left_out = embedded_questions(source, config.ask, config.split or "test")
    return QuestionSet(questions, lambda _: ((key, one.content) for key, one in dataset.corpus.items()), left_out)


def _hf(config: QuestionsConfig, source: str) -> QuestionSet:
    found = hf_questions(source, config.split or "validation")

    def own(asked: Collection[RagQuestion]) -> Passages:
        pooled = {key: text for one in asked for key, text in found.contexts[one.id].items()}
        if not pooled:
            raise UserError(f"{config.source}: brings no passages; name them as `passages`, e.g. a BEIR folder")
        return pooled.items()

    return QuestionSet(found.questions, own, found.left_out)


def _ir(config: QuestionsConfig, source: str) -> QuestionSet:
    answers = None
    if config.answers is not None:
        answers = hf_questions(config.answers.removeprefix("hf:"), config.split or "validation")
    found = ir_questions(source, answers)
    return QuestionSet(found.questions, lambda _: read_documents(config.source), found.left_out)


SOURCES: dict[str, Callable[[QuestionsConfig, str], QuestionSet]] = {"embedded": _embedded, "hf": _hf, "ir": _ir}


def _lines(config: QuestionsConfig) -> QuestionSet:
    path = Path(config.source).expanduser()
    if not path.is_file():
        raise UserError(f"{config.source}: no such file; questions are a .jsonl, embedded:NAME, hf:ID or ir:ID")

    def none(_: Collection[RagQuestion]) -> Passages:
        raise UserError(f"{config.source}: a file of questions brings no passages; name them as `passages`")

    found = read_questions(path)
    if not found:
        raise UserError(f"{path}: no question in it")
    return QuestionSet(found, none)


def load_questions(config: QuestionsConfig) -> QuestionSet:
    """All questions of a source.

    Raises:
        UserError: the source is unknown or wrong, with file and line.
    """
    kind, _, source = config.source.partition(":")
    found = SOURCES[kind](config, source) if kind in SOURCES else _lines(config)
    if config.passages is None:
        return found
    named, questions = config.passages, found.questions
    if kind in SOURCES and named != config.source:
        # What the source calls right are not the ids of these passages.
        questions = [one.model_copy(update={"passages": []}) for one in questions]
    return QuestionSet(questions, lambda _: read_documents(named), found.left_out)


def read_questions(path: Path) -> list[RagQuestion]:
    """A `.jsonl` file of questions; other fields are passed over.

    Raises:
        UserError: the first thing wrong in it, with its line.
    """
    found: dict[str, RagQuestion] = {}
    for row, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{row}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: must be a JSON object, found {type(record).__name__}")
        fields = {key: value for key, value in record.items() if key in RagQuestion.model_fields}
        fields["id"] = id_of(fields.get("id"))
        try:
            json.dumps(fields, ensure_ascii=False).encode()
            one = RagQuestion.model_validate(fields)
        except UnicodeEncodeError:
            raise UserError(f"{where}: holds half of a surrogate pair, which is no text") from None
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"]
            raise UserError(
                f"{where}: {'.'.join(map(str, first['loc']))}: {message[:1].lower()}{message[1:]}"
            ) from None
        if one.id in found:
            raise UserError(f"{where}: duplicate question id '{one.id}'")
        if not one.question.strip() or not any(answer.strip() for answer in one.answers):
            raise UserError(f"{where}: question '{one.id}' is empty, or all its answers are")
        found[one.id] = one
    return list(found.values())
