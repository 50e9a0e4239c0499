"""Question sets: files, samples, and what is said about a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unimoer.config import QuestionsConfig
from unimoer.errors import UserError
from unimoer.rag.asked import ABSENT, read_asked, write_asked
from unimoer.rag.questions import read_questions
from unimoer.search import read_documents

LINE = {"id": "a", "question": "Who?", "answers": ["me"]}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_file_of_questions(tmp_path: Path) -> None:
    more = {"id": 7, "question": "Where?", "answers": ["x", "y"], "passages": ["p"], "query": "place", "extra": [1]}
    first, second = read_questions(written(tmp_path / "q.jsonl", LINE, "", more))
    assert (first.id, first.question, first.answers, first.query, first.passages) == ("a", "Who?", ["me"], None, [])
    assert (second.id, second.answers, second.query, second.passages) == ("7", ["x", "y"], "place", ["p"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b"', "q.jsonl:2: is not valid JSON"),
        ([1], "q.jsonl:2: must be a JSON object, found list"),
        ({"id": "b", "question": "?"}, "q.jsonl:2: answers: field required"),
        ({"id": True, "question": "?", "answers": ["x"]}, "q.jsonl:2: id: input should be a valid string"),
        ({"question": "?", "answers": ["x"]}, "q.jsonl:2: id: input should be a valid string"),
        ({"id": "b", "question": "?", "answers": []}, "q.jsonl:2: answers: list should have at least 1 item"),
        ({"id": "b", "question": "?", "answers": "me"}, "q.jsonl:2: answers: input should be a valid list"),
        ({"id": "b", "question": " ", "answers": ["x"]}, "q.jsonl:2: question 'b' is empty"),
        ({"id": "b", "question": "?", "answers": [" "]}, "q.jsonl:2: question 'b' is empty, or all its answers are"),
        (LINE, "q.jsonl:2: duplicate question id 'a'"),
        ('{"id": "b", "question": "\\ud800", "answers": ["x"]}', "q.jsonl:2: holds half of a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_questions(written(tmp_path / "q.jsonl", LINE, line))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "passages", "message"),
    [
        ("nothing.jsonl", None, "nothing.jsonl: no such file; questions are a .jsonl, embedded:NAME"),
        ("q.jsonl", None, "q.jsonl: a file of questions brings no passages; name them as `passages`"),
        ("q.jsonl", "nowhere", "nowhere: no such file or folder"),
        ("empty.jsonl", "texts", "empty.jsonl: no question in it"),
    ],
)
def test_a_source_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, passages: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "q.jsonl", LINE)
    written(tmp_path / "empty.jsonl", "")
    with pytest.raises(UserError, match=message):
        write_asked("set", QuestionsConfig(source=source, passages=passages), 0, tmp_path)


@pytest.fixture
def many(tmp_path: Path) -> QuestionsConfig:
    """Forty questions, each with its passage among two hundred in a folder of texts."""
    lines = [
        {"id": f"q{n}", "question": f"Who is {n}?", "answers": [str(n)], "passages": [f"p{n}.txt"]} for n in range(40)
    ]
    (tmp_path / "texts").mkdir()
    for number in range(200):
        (tmp_path / "texts" / f"p{number}.txt").write_text(f"It is {number}.")
    return QuestionsConfig(source=str(written(tmp_path / "q.jsonl", *lines)), passages=str(tmp_path / "texts"))


def asked(config: QuestionsConfig, folder: Path, seed: int = 0) -> tuple[list[str], dict[str, str]]:
    folder.mkdir(exist_ok=True)
    write_asked("set", config, seed, folder)
    questions, passages = read_asked(folder, "set")
    return [one.id for one in questions], dict(passages)


def test_samples_are_the_same_everywhere_and_nested(many: QuestionsConfig, tmp_path: Path) -> None:
    ten = many.model_copy(update={"sample": 10, "documents": 30})
    ids, passages = asked(ten, tmp_path / "one")
    again = asked(ten, tmp_path / "two")
    assert (ids, passages) == again and len(ids) == 10 and len(passages) == 30
    # A change of the order of lines moves nothing into or out of a sample.
    lines = Path(many.source).read_text().splitlines()
    written(Path(many.source), *reversed(lines))
    assert set(asked(ten, tmp_path / "three")[0]) == set(ids)
    larger = asked(many.model_copy(update={"sample": 20}), tmp_path / "four")[0]
    assert set(ids) < set(larger)
    assert set(asked(ten, tmp_path / "five", seed=1)[0]) != set(ids)


def test_a_sample_of_passages_keeps_those_that_answer(many: QuestionsConfig, tmp_path: Path) -> None:
    ids, passages = asked(many.model_copy(update={"documents": 45}), tmp_path / "asked")
    assert len(ids) == 40 and len(passages) == 45 and {f"p{n}.txt" for n in range(40)} <= passages.keys()
    assert passages["p3.txt"] == "It is 3."
    # They are not left out where they are more than were asked for.
    assert len(asked(many.model_copy(update={"documents": 5}), tmp_path / "few")[1]) == 40


def test_a_sample_of_passages_without_known_ones_is_refused(tmp_path: Path, many: QuestionsConfig) -> None:
    written(Path(many.source), LINE)
    with pytest.raises(UserError, match=r"questions.set.documents: nobody says which passages answer"):
        asked(many.model_copy(update={"documents": 5}), tmp_path / "asked")


def test_passages_that_are_not_there_are_counted(tmp_path: Path, many: QuestionsConfig) -> None:
    written(Path(many.source), LINE | {"passages": ["p1.txt", "gone.txt"]})
    found = write_asked("set", many, 0, tmp_path)
    assert (found.questions, found.passages, found.left_out) == (1, 200, {ABSENT: 1})
    assert read_asked(tmp_path, "set")[0][0].passages == ["p1.txt"]


def test_what_is_written_can_be_a_source_again(many: QuestionsConfig, tmp_path: Path) -> None:
    ids, passages = asked(many, tmp_path / "asked")
    place = tmp_path / "asked"
    again = QuestionsConfig(source=str(place / "set.questions.jsonl"), passages=str(place / "set.passages.jsonl"))
    assert asked(again, tmp_path / "again") == (ids, passages)
    assert dict(read_documents(str(place / "set.passages.jsonl"))) == passages


def test_the_fingerprint_is_of_questions_and_passages(many: QuestionsConfig, tmp_path: Path) -> None:
    first = write_asked("set", many, 0, tmp_path).fingerprint
    assert write_asked("set", many, 0, tmp_path).fingerprint == first
    (tmp_path / "texts" / "p1.txt").write_text("It is one.")
    assert write_asked("set", many, 0, tmp_path).fingerprint != first
