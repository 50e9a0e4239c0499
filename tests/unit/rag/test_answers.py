"""SQuAD's measures, by hand."""

from __future__ import annotations

import pytest

from unimoer.rag.answers import contains, exact_match, is_verdict, normalise, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("a man, an apple; the end", "man apple end"),
        ("Theatre, another", "theatre another"),
        ("  ", ""),
        ("the", ""),
        ("U.S.", "us"),
        ("Zürich — the city", "zürich — city"),
    ],
)
def test_normalisation_is_that_of_squad(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match_takes_any_accepted_answer() -> None:
    assert exact_match("The Broad Radius.", ["Wide radius", "broad radius"]) == 1.0
    assert exact_match("broad", ["broad radius"]) == 0.0
    assert exact_match("", ["the"]) == 1.0
    assert exact_match("x", []) == 0.0


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("red kettle", ["red kettle"], 1.0),
        # 1 of 3 words right, 1 of 2 found: 2 * (1/3) * (1/2) / (5/6).
        ("my red pan", ["the red kettle"], 0.4),
        # A word counts as often as it stands there: 1 of 2, and 1 of 1.
        ("red red", ["red"], 2 / 3),
        # The best of those accepted.
        ("red kettle", ["blue pan", "kettle"], 2 / 3),
        ("blue", ["red"], 0.0),
        ("the", ["a"], 1.0),
        ("", ["red"], 0.0),
        ("the", ["red"], 0.0),
    ],
)
def test_token_f1(answer: str, accepted: list[str], expected: float) -> None:
    assert token_f1(answer, accepted) == pytest.approx(expected)


def test_a_text_holds_an_answer_as_whole_words() -> None:
    assert contains("It is the Red Kettle, of course.", ["red kettle"])
    assert not contains("scared kettles", ["red kettle", "red", "kettle"])
    assert not contains("kettle red", ["red kettle"])
    # What has no word left is in every text.
    assert not contains("anything", ["the", "!"])


def test_yes_and_no_say_nothing_about_a_passage() -> None:
    assert is_verdict(["Yes"]) and is_verdict(["no."])
    assert not is_verdict(["no", "nobody"])
