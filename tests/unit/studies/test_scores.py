"""Per-query scores: paired or refused, and the same after a round trip through the published file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from study_folder import losing
from unimoer.errors import UserError
from unimoer.studies.evidence import read_evidence
from unimoer.studies.scores import FILE, Key, Scores, read_per_query
from unimoer.studies.summary import score_tables
from unimoer.types import Task

Write = Callable[..., Path]
HPO = ("test", "", "emb_only", 1, None, "hpo", Task.EMBEDDING)


def test_a_round_trip_keeps_every_score(write_study: Write) -> None:
    folder = write_study(losing(3.0, 1.0), noise=0.1, steps=(5,))
    first = Scores.read(folder)
    before = (folder / FILE).read_bytes()
    first.write(folder, "ndcg@10")
    assert (folder / FILE).read_bytes() == before
    assert Scores.read(folder).per_query == first.per_query
    assert {key.step for key in first.per_query} == {5, None}


def test_a_reference_that_ran_once_stands_in_for_every_seed(write_study: Write) -> None:
    table = Scores.read(write_study(losing(3.0, 1.0))).of("test", "")
    matrix = table.matrix("bm25", Task.RERANKING, "hpo", "ndcg@10", [1, 2, 3])
    assert matrix.shape == (3, 60)
    assert np.array_equal(matrix[0], matrix[2])
    assert table.systems(Task.EMBEDDING)[:5] == ["random", "bm25", "untrained", "emb_only", "joint_single"]
    assert table.covers("emb_only", Task.EMBEDDING, [1, 2, 3])
    assert not table.covers("emb_only", Task.EMBEDDING, [4])
    assert not table.covers("emb_only", Task.RERANKING, [1])


def test_arms_with_different_queries_are_refused(write_study: Write) -> None:
    scores = Scores.read(write_study(losing(3.0, 1.0)))
    key = Key(*HPO)
    scores.add(key, {q: v for q, v in scores.per_query[key].items() if q != "q007"}, "short.jsonl")
    with pytest.raises(UserError, match=r"short\.jsonl and .* must have the same queries; 1 differ, 'q007' first"):
        scores.check_paired()


@pytest.mark.parametrize("content", [b"", b"not gzip", b"\x1f\x8b\x08\x00junk"])
def test_a_broken_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"scores\.json\.gz: not a file of scores") as caught:
        Scores.read(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="missing, and there are no runs beside it"):
        Scores.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"query_id": "a", "ndcg@10": 1}\n{"query_id": "a", "ndcg@10": 1}', ":2: query 'a' is listed twice"),
        ('{"query_id": "a", "ndcg@10": NaN}', ":1: query 'a' has a score that is not finite"),
        ('{"ndcg@10": 1}', ":1: expected a JSON object of query_id and numbers"),
        ("{", ":1: expected a JSON object"),
        ("", ": no queries"),
    ],
)
def test_a_broken_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "per_query.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_per_query(path)


def test_every_system_stands_beside_bm25(write_study: Write) -> None:
    """The difference is paired by query, so its interval is narrower than those of the two scores would make it."""
    evidence = read_evidence(write_study(losing(3.0, 1.0), noise=0.05))
    found = score_tables(evidence, evidence.table())[Task.EMBEDDING].macro
    assert found["bm25"].to_bm25 is None
    for system in ("random", "emb_only", "joint_single"):
        one, bm25, cell = found[system].score, found["bm25"].score, found[system].to_bm25
        assert cell is not None and one.mean is not None and bm25.mean is not None and cell.mean is not None
        assert cell.mean == pytest.approx(one.mean - bm25.mean)
        assert cell.low is not None and cell.high is not None and one.low is not None and one.high is not None
        assert cell.high - cell.low < one.high - one.low
