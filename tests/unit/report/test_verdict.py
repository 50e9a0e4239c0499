"""The verdict in words: never more than its interval supports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unimoer.report.notices import notices
from unimoer.report.sections import verdict
from unimoer.report.study import StudyFolder

Get = Callable[[str], StudyFolder]


def lead_of(study: StudyFolder) -> tuple[str, str, list[str], list[str]]:
    section = verdict.build(study)
    assert section is not None and section.lead is not None
    lead = section.lead
    return lead.headline, lead.badge, list(lead.sentences), [card.claim for card in section.cards]


@pytest.mark.parametrize(
    ("name", "headline", "badge", "claims"),
    [
        ("inconclusive", "Not settled", "MARGINAL", ["not settled", "not settled"]),
        ("pass", "Sharing costs something", "PASS", ["costs 2% or more", "not settled"]),
        ("fail", "Sharing is free", "FAIL", ["costs less than 1%"] * 2),
        ("gains", "Sharing is free", "FAIL", ["gains from sharing"] * 2),
        (
            "useless",
            "Not settled; the embedding specialist does not reach BM25 and the reranking specialist makes the order "
            "it is given worse",
            "MARGINAL",
            ["not settled"] * 2,
        ),
        (
            "underpowered",
            "Not settled; the embedding specialist is not shown to have learned anything and the reranking specialist "
            "is not shown to have learned anything",
            "MARGINAL",
            ["too weak to judge"] * 2,
        ),
    ],
)
def test_plain_words_come_first_and_follow_the_interval(
    studies: Get, name: str, headline: str, badge: str, claims: list[str]
) -> None:
    found = lead_of(studies(name))
    assert (found[0], found[1], found[3]) == (headline, badge, claims)


def test_a_useful_model_is_a_reserve_on_any_claim(studies: Get) -> None:
    decision = studies("pass").decision
    assert decision is not None
    tasks = dict(decision.tasks)
    useless = studies("useless").decision
    assert useless is not None
    for task, found in tasks.items():
        tasks[task] = found.model_copy(update={"useful": useless.tasks[task].useful})
    assert verdict.headline(decision.model_copy(update={"tasks": tasks})).startswith(
        "Sharing costs something, but the embedding specialist does not reach BM25"
    )


def test_sentences_name_rule_interval_minimum_effect_and_what_would_settle_it(studies: Get) -> None:
    rule, embedding, reranking = lead_of(studies("inconclusive"))[2]
    assert rule == (
        "The rule gives MARGINAL on the point estimates of the interference ratio, +1.5% (embedding) and +0.2% "
        "(reranking). The 95% intervals do not settle it."
    )
    assert embedding == (
        "Embedding: TIR +1.5%, 95% interval [−1.0, 4.0]. Minimum detectable effect, with a power of 80%: 3.5 points. "
        "Settling it takes about 4,200 test queries in every collection with the same seeds."
    )
    assert reranking.startswith("Reranking: TIR +0.2%, 95% interval [−2.3, 2.7].")
    assert "Settling" not in lead_of(studies("fail"))[2][1]


def test_what_settles_it_counts_seeds_too_or_says_that_nothing_would(studies: Get) -> None:
    study = studies("inconclusive")
    decision = study.decision
    assert decision is not None
    for needed, expected in (
        (
            {"queries": 900, "seeds": 12},
            "about 900 test queries in every collection with the same seeds or 12 seeds with the same queries.",
        ),
        ({"queries": None, "seeds": None}, "Neither more queries nor more seeds alone would settle it."),
    ):
        content = decision.model_dump()
        content["tasks"]["embedding"]["tir"]["needed"] = needed
        changed = StudyFolder(study.folder, study.results, type(decision).model_validate(content))
        assert expected in lead_of(changed)[2][1]


def test_the_strip_holds_every_interval(studies: Get) -> None:
    for name in ("pass", "wild", "fail"):
        section = verdict.build(studies(name))
        assert section is not None
        for card in section.cards:
            assert card.strip is not None and card.strip.undetectable is not None
            places = (0, card.strip.low, card.strip.mean, card.strip.high, 100)
            assert list(places) == sorted(places)
            assert card.strip.undetectable[0] < card.strip.zero < card.strip.undetectable[1]


def test_a_changed_criterion_is_announced_with_time_and_both_verdicts(studies: Get) -> None:
    study = studies("amended")
    assert notices(study) == [
        "Changed after the first run, on 2025-06-02T09:30:00+00:00: criterion.pass_at: 2 -> 7.",
        "Under the declaration of 2025-06-02T09:30:00+00:00 the rule gives MARGINAL (sharing costs something); the one "
        "declared first gives PASS.",
    ]
    assert lead_of(study)[1] == "PASS", "the decision declared first stays the decision"
    assert notices(studies("pass")) == []


def test_a_plan_that_was_changed_before_it_was_done_has_the_decision_that_was_made(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders("amended"), tmp_path / "study")
    (copy / "decision.json").unlink()
    study = StudyFolder.read(copy)
    assert lead_of(study)[1] == "MARGINAL"
    assert notices(study) == ["Changed after the first run, on 2025-06-02T09:30:00+00:00: criterion.pass_at: 2 -> 7."]


def test_the_criterion_says_when_it_was_frozen_and_one_seed_is_a_caution(studies: Get) -> None:
    section = verdict.build(studies("one_seed"))
    assert section is not None and section.lead is not None
    notes = {note.title: note for note in section.notes}
    assert "Frozen 2025-05-01T10:00:00+00:00" in notes["Criterion"].lines[0] and "f" * 16 in notes["Criterion"].lines[0]
    assert notes["One seed"].warning and section.lead.preliminary == ["one seed of at least three"]


def test_no_decision_no_verdict(studies: Get) -> None:
    assert verdict.build(studies("curve")) is None
