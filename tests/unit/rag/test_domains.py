"""Questions about the embedded domains: what is asked, what counts as right, and that no question tells its answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from unimoer.data.embedded import DOMAINS, load_embedded
from unimoer.errors import UserError
from unimoer.rag.answers import exact_match
from unimoer.rag.domains import (
    ASKED,
    HOLDS_ITS_ANSWER,
    TOO_SHORT,
    embedded_questions,
    tells,
    weakness_names,
    without_names,
)
from unimoer.types import Document, RetrievalDataset


def test_a_weakness_goes_by_its_title_without_brackets_and_by_the_usual_name() -> None:
    long = "Improper Neutralization of Input During Web Page Generation ('Cross-site Scripting')"
    assert weakness_names(long) == [
        long,
        "Improper Neutralization of Input During Web Page Generation",
        "Cross-site Scripting",
    ]
    assert weakness_names("Path Traversal: '../filedir'") == ["Path Traversal: '../filedir'"]
    assert weakness_names("Overflow (Wrap)") == ["Overflow (Wrap)", "Overflow"]


def test_names_are_taken_out_of_a_text_whatever_stands_between_their_words() -> None:
    text = "Cross-site scripting (cross site-Scripting) is old. A wax, many waxes, beeswax."
    assert without_names(text, ["Cross-Site Scripting", "wax"]) == "it (it) is old. A it, many it, beeswax."


@pytest.mark.parametrize(
    ("text", "answers", "told"),
    [
        ("it ran cmstp.exe", ["CMSTP"], True),
        ("with Visual-Basic inside", ["Visual Basic"], True),
        ("the U.S. dollar", ["US dollar"], True),
        ("visually basic", ["Visual Basic"], False),
    ],
)
def test_a_question_that_holds_an_answer_is_known(text: str, answers: list[str], told: bool) -> None:
    assert tells(text, answers) is told


@pytest.fixture
def weaknesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RetrievalDataset:
    """A small `cwe`."""
    corpus = {
        "CWE-1": Document(
            "Red kettles are left on the stove until they burn ('Dry Kettle').", "Kettle Left Alone ('Dry Kettle')"
        ),
        "CWE-2": Document("A Blunt Knife is one that no longer cuts what it should cut well.", "Blunt Knife"),
        "CWE-3": Document("A wet floor.", "Wet Floor"),
    }
    queries = {"a": "the kettle burned", "b": "a blunt knife slipped", "c": "bread was torn", "d": "nobody judged it"}
    test = {"a": {"CWE-1": 1, "CWE-2": 0}, "b": {"CWE-2": 1}, "c": {"CWE-2": 1, "CWE-1": 1}, "d": {"CWE-3": 0}}
    found = RetrievalDataset("cwe", corpus, queries, {"test": test})
    domain = SimpleNamespace(build=lambda: found, folder=tmp_path / "cwe", notes="")
    monkeypatch.setitem(DOMAINS, "cwe", domain)  # type: ignore[arg-type]
    return found


def test_examples_ask_with_the_queries_of_a_domain(weaknesses: RetrievalDataset) -> None:
    first, third, *rest = embedded_questions("cwe", "examples", "test")[0]
    assert rest == []
    assert (first.id, first.query, first.passages) == ("a", "the kettle burned", ["CWE-1"])
    assert first.question == "Which software weakness is this an example of? the kettle burned"
    assert first.answers == ["Kettle Left Alone ('Dry Kettle')", "Kettle Left Alone", "Dry Kettle"]
    # Of several documents that are right, every name counts.
    assert (third.id, third.passages, third.answers[0]) == ("c", ["CWE-2", "CWE-1"], "Blunt Knife")
    assert embedded_questions("cwe", "examples", "test")[2] == {HOLDS_ITS_ANSWER: 1}


def test_descriptions_ask_with_a_documents_own_text_without_its_name(weaknesses: RetrievalDataset) -> None:
    questions, dataset, left_out = embedded_questions("cwe", "descriptions", "test")
    assert [(one.id, one.query) for one in questions] == [
        ("CWE-1", "Red kettles are left on the stove until they burn ('it')."),
        ("CWE-2", "A it is one that no longer cuts what it should cut well."),
    ]
    assert left_out == {TOO_SHORT: 1} and dataset.corpus.keys() == weaknesses.corpus.keys()


def test_domains_without_names_and_splits_that_there_are_not(weaknesses: RetrievalDataset) -> None:
    with pytest.raises(UserError, match=r"embedded:code: has no names to ask for; choose from attack, cwe, hpo"):
        embedded_questions("code", "examples", "test")
    with pytest.raises(UserError, match="embedded:cwe: has no split 'tset'; did you mean 'test'"):
        embedded_questions("cwe", "examples", "tset")


@pytest.mark.assets
@pytest.mark.parametrize(("name", "at_least"), [("hpo", 1300), ("attack", 700), ("cwe", 300)])
def test_no_question_of_a_real_domain_tells_its_answer(name: str, at_least: int) -> None:
    corpus = load_embedded(name).corpus
    for ask in ("examples", "descriptions"):
        questions, dataset, left_out = embedded_questions(name, ask, "test")
        assert len(questions) >= at_least and left_out[HOLDS_ITS_ANSWER] > 0
        assert dataset.corpus.keys() == corpus.keys()
        for one in questions:
            assert not tells(one.query or "", one.answers), one
            assert (one.query or "") in one.question
            # Whoever reads the right passage and copies its title is right.
            titles = [corpus[key].title for key in one.passages]
            assert name == "hpo" or any(exact_match(title, one.answers) for title in titles)
        # Somebody who knows another name of the same thing is right too.
        assert sum(len(one.answers) > 1 for one in questions) > len(questions) / 20
    assert set(ASKED) == {"hpo", "attack", "cwe"}
