"""Scores of `unimoer evaluate` have the intervals that a study's scores have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from unimoer.schema import EvaluationSummary
from unimoer.studies.evaluated import AVERAGE, rows
from unimoer.types import Task


def write(root: Path, system: str, name: str, scores: dict[str, float]) -> EvaluationSummary:
    one = EvaluationSummary(
        dataset=name,
        task=Task.EMBEDDING,
        arm=system,
        seed=0,
        suite="extra",
        key=f"key-{system}",
        queries=len(scores),
        documents=9,
        fingerprint="f",
        metrics={"ndcg@10": float(np.mean(list(scores.values()))), "recall@100": 0.5},
    )
    folder = root / system / "eval" / f"extra-{one.key}" / "final" / name / "embedding"
    folder.mkdir(parents=True)
    lines = [json.dumps({"query_id": query, "ndcg@10": value}) for query, value in scores.items()]
    (folder / "per_query.jsonl").write_text("\n".join(lines))
    return one


def test_differences_are_paired_by_query_and_averages_weigh_collections_alike(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = {(s, n): generator.uniform(size=k) for s in ("bm25", "mine") for n, k in (("a", 20), ("b", 50))}
    found = [
        write(tmp_path, system, name, {f"q{n:02}": float(v) for n, v in reversed(list(enumerate(values)))})
        for (system, name), values in scores.items()
    ]
    table = {(row.collection, row.system): row for row in rows(tmp_path, found)}
    assert list(table) == [
        ("a", "bm25"),
        ("a", "mine"),
        ("b", "bm25"),
        ("b", "mine"),
        (AVERAGE, "bm25"),
        (AVERAGE, "mine"),
    ]
    difference = scores["mine", "a"] - scores["bm25", "a"]
    test = stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
    row = table["a", "mine"].to_bm25
    assert row is not None and row.ci95 == pytest.approx((test.low, test.high), abs=1e-3)
    assert table["a", "bm25"].to_bm25 is None
    macro = table[AVERAGE, "mine"]
    assert macro.score.mean == pytest.approx(np.mean([scores["mine", n].mean() for n in "ab"]))
    assert (macro.queries, macro.metrics, table["a", "mine"].metrics["recall@100"]) == (70, {}, 0.5)


def test_without_references_there_is_a_score_and_no_difference(tmp_path: Path) -> None:
    [row] = rows(tmp_path, [write(tmp_path, "mine", "a", {"q1": 0.5, "q2": 0.7})])
    assert row.score.mean == pytest.approx(0.6) and row.to_bm25 is None
