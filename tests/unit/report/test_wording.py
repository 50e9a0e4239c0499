"""Numbers as text, and sentences that say neither more nor less than the decision does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unimoer.report import wording
from unimoer.report.files import Experiment
from unimoer.report.notes import conflict_paragraphs, reading_notes, resolution_sentence

CRITERION = {"metric": "ndcg@10", "pass": 2.0, "fail": 1.0}


def cell(mean: float | None, low: float | None, high: float | None, status: str = "ok") -> dict[str, Any]:
    return {"tir": {"mean": mean, "ci95": [low, high]}, "status": status}


def decision(verdict: str, embedding: dict[str, Any], reranking: dict[str, Any], supported: str = "") -> dict[str, Any]:
    return {
        "verdict": verdict,
        "interval_verdict": {"verdict": supported or verdict},
        "criterion": CRITERION,
        "tasks": {"embedding": embedding, "reranking": reranking},
    }


def test_numbers() -> None:
    assert wording.percent(-4.56, signed=True) == "−4.6%"
    assert wording.percent(-0.04, signed=True) == "0.0%"
    assert wording.percent(2.0, signed=True) == "+2.0%"
    assert wording.score(None) == "–"
    assert wording.bounds([-0.0004, 0.5]) == "[0.000, 0.500]"
    assert wording.bounds([None, None]) == "–"
    assert wording.p_value(0.0001) == "<0.001" and wording.p_value(0.0213) == "0.021"
    assert [wording.duration(value) for value in (None, 12, 118, 9000)] == ["–", "12 s", "2.0 min", "2.5 h"]
    assert [wording.metric_label(name) for name in ("ndcg@10", "map", "mrr@10", "recall@100", "x")] == [
        "nDCG@10",
        "MAP",
        "MRR@10",
        "Recall@100",
        "x",
    ]


def test_a_loss_and_a_gain_are_put_alike() -> None:
    loss = wording.task_sentence("embedding", cell(3.0, 1.0, 5.0), "ndcg@10")
    gain = wording.task_sentence("embedding", cell(-3.0, -5.0, -1.0), "ndcg@10")
    assert "loses 3.0% of" in loss and "1.0% to 5.0%" in loss
    assert "gains 3.0% on" in gain and "1.0% to 5.0%" in gain
    assert "keeps" in wording.task_sentence("embedding", cell(0.01, -1.0, 1.0), "ndcg@10")
    assert "no interference ratio" in wording.task_sentence("embedding", cell(None, None, None), "ndcg@10")
    assert "says little" in wording.task_sentence("embedding", cell(3.0, 1.0, 5.0, "underpowered"), "ndcg@10")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (decision("PASS", cell(3, 2, 4), cell(0, -1, 1)), "Sharing one adapter costs embedding."),
        (decision("PASS", cell(3, 2, 4), cell(-3, -4, -2)), "Sharing one adapter costs embedding and helps reranking."),
        (decision("PASS", cell(3, 2, 4), cell(3, 2, 4)), "Sharing one adapter costs both tasks."),
        (
            decision("PASS", cell(3, -2, 8), cell(0, -1, 1), "INCONCLUSIVE"),
            "Sharing one adapter seems to cost embedding; the intervals leave room for less.",
        ),
        (
            decision("PASS", cell(3, 2, 4), cell(0, -1, 1, "underpowered")),
            "Sharing one adapter seems to cost embedding, but the reranking specialist learned too little to judge by.",
        ),
        (
            decision("MARGINAL", cell(1.5, 1, 1.9), cell(0, -1, 0.5)),
            "The cost of sharing one adapter falls between the lines.",
        ),
        (decision("FAIL", cell(0.2, 0, 0.5), cell(0, -1, 0.5)), "Sharing one adapter costs neither task 1% or more."),
        (
            decision("FAIL", cell(0.2, -3, 3), cell(0, -1, 0.5), "INCONCLUSIVE"),
            "No cost of sharing one adapter shows, but the intervals allow one.",
        ),
        (decision("FAIL", cell(-3, -4, -2), cell(-3, -4, -2)), "One shared adapter does better than two specialists."),
        (
            decision("FAIL", cell(-3, -4, -2), cell(-1, -2, 0.5)),
            "One shared adapter does at least as well as two specialists, and better at embedding.",
        ),
        (
            decision("FAIL", cell(-3, -4, -2), cell(0.2, -0.5, 0.9)),
            "Sharing one adapter helps embedding, costs reranking less than 1%.",
        ),
        (
            decision("FAIL", cell(0, -1, 1, "underpowered"), cell(0, -1, 1, "underpowered"), "INCONCLUSIVE"),
            "No cost of sharing one adapter shows, but both specialists learned too little to judge by.",
        ),
    ],
)
def test_headline_is_no_stronger_than_the_intervals(given: dict[str, Any], expected: str) -> None:
    assert wording.headline(given) == expected


@pytest.mark.parametrize(
    "variant", ["pass", "fail", "marginal", "negative", "one_seed", "underpowered", "one_dataset", "wild", "no_logs"]
)
def test_notes_fit_their_experiment(experiments: Callable[[str], Path], variant: str) -> None:
    experiment = Experiment.read(experiments(variant))
    notes = {note.title: note for note in reading_notes(experiment)}
    assert {"The ratio", "The criterion", "The interval", "The guard", "Exposure", "Seeds"} <= notes.keys()
    assert notes["Seeds"].warning == (len(experiment.seeds) == 1)
    assert notes["The guard"].warning == (variant == "underpowered")
    assert "20 BM25 candidates" in notes["The reranking ceiling"].text
    assert "documents unseen in training." in notes["Seen and unseen documents"].text
    assert "±" in resolution_sentence(experiment.decision)
    assert bool(conflict_paragraphs(experiment.decision)) == (variant != "no_logs")
    text = " ".join([*(note.text for note in notes.values()), *conflict_paragraphs(experiment.decision)])
    assert not re.search(r"\bnan\b|None|\{|\}|  |\.\.", text)


def test_total_budget_is_a_warning(experiments: Callable[[str], Path]) -> None:
    experiment = Experiment.read(experiments("pass"))
    changed = Experiment(experiment.folder, {**experiment.decision, "budget": "total"}, experiment.results)
    note = next(note for note in reading_notes(changed) if note.title == "Exposure")
    assert note.warning and "fewer examples" in note.text


def test_conflict_words_follow_the_sign_and_the_ceiling(experiments: Callable[[str], Path]) -> None:
    decision = json.loads(json.dumps(Experiment.read(experiments("pass")).decision))
    conflicts = decision["gradient_conflicts"]
    conflicts |= {"mean_cosine": -0.1, "noise_ceiling": 0.2}
    assert "points the other way, at 50% of that" in " ".join(conflict_paragraphs(decision))
    conflicts |= {"noise_ceiling": 0.01}
    assert "can hardly be read" in " ".join(conflict_paragraphs(decision))
    conflicts |= {"noise_ceiling": None}
    assert "noise pulls" not in " ".join(conflict_paragraphs(decision))
