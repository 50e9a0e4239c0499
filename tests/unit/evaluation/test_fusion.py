"""Fusion of rankings against sums worked out by hand."""

from __future__ import annotations

import pytest

from unimoer.evaluation.fusion import combine, fuse


def test_scores_are_the_sums_of_reciprocal_ranks() -> None:
    lexical = {"q": {"a": 9.0, "b": 5.0, "c": 1.0}}
    dense = {"q": {"c": 0.9, "d": 0.8, "a": 0.1}}
    [(query, scores)] = fuse([lexical, dense]).items()
    assert query == "q"
    assert scores == pytest.approx({"a": 1 / 61 + 1 / 63, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})
    assert fuse([lexical, dense], k=0)["q"] == pytest.approx({"a": 1 + 1 / 3, "b": 1 / 2, "c": 1 / 3 + 1, "d": 1 / 2})


def test_only_ranks_count() -> None:
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    stretched = {"q": {"c": -1e6, "a": 1e6, "b": 0.0}}
    assert fuse([run]) == fuse([stretched])


def test_a_document_of_both_runs_beats_the_first_of_one() -> None:
    fused = fuse([{"q": {"x": 2.0, "shared": 1.0}}, {"q": {"y": 2.0, "shared": 1.0}}])["q"]
    assert max(fused, key=fused.__getitem__) == "shared"


def test_queries_of_one_run_stay_and_an_empty_list_adds_nothing() -> None:
    fused = fuse([{"q1": {"a": 1.0}, "q2": {}}, {"q2": {"b": 1.0}}])
    assert fused == {"q1": {"a": 1 / 61}, "q2": {"b": 1 / 61}}
    assert fuse([]) == {}


def test_equal_scores_are_ranked_as_trec_eval_ranks_them() -> None:
    """By descending id; 0.3 and the next number up are one float32."""
    fused = fuse([{"q": {"a": 0.30000000000000004, "b": 0.3, "é": 0.3}}])["q"]
    assert sorted(fused, key=fused.__getitem__, reverse=True) == ["é", "b", "a"]


def test_weighted_scores_are_standardised_over_each_list() -> None:
    dense = {"q": {"a": 0.9, "b": 0.7, "c": 0.5}}
    lexical = {"q": {"b": 30.0, "d": 10.0}}
    unit = 1.5**0.5
    [scores] = combine([(dense, 1.0), (lexical, 0.5)]).values()
    assert scores == pytest.approx({"a": unit - 0.5, "b": 0.0 + 0.5, "c": -unit - 0.5, "d": -unit - 0.5})


def test_scale_and_offset_of_a_list_change_nothing() -> None:
    dense, lexical = {"q": {"a": 0.9, "b": 0.2, "c": 0.5}}, {"q": {"b": 3.0, "d": 1.0, "a": 2.5}}
    other = {"q": {key: 40 * value - 7 for key, value in lexical["q"].items()}}
    assert combine([(dense, 1.0), (other, 0.3)])["q"] == pytest.approx(combine([(dense, 1.0), (lexical, 0.3)])["q"])


def test_a_list_that_tells_nothing_adds_nothing() -> None:
    """Absent, empty, of one document, or of equal scores."""
    dense = {"q": {"a": 3.0, "b": 1.0}}
    for silent in ({}, {"q": {}}, {"q": {"a": 5.0}}, {"q": {"a": 2.0, "b": 2.0}}):
        assert combine([(dense, 1.0), (silent, 0.7)])["q"] == pytest.approx({"a": 1.0, "b": -1.0})
