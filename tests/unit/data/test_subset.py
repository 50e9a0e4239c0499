"""Samples depend on ids and seed alone, grow without replacing, and never lose a judged document."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimoer.data import subset
from unimoer.data.subset import part
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset

CORPUS = {f"d{number}": Document(f"text {number}") for number in range(60)}
QUERIES = {f"q{number}": f"query {number}" for number in range(20)}
QRELS = {
    "train": {f"q{number}": {f"d{number}": 1, f"d{number + 1}": 0} for number in range(12)} | {"q12": {"d0": 0}},
    "test": {f"q{number}": {f"d{number}": 2} for number in range(13, 20)},
}
DATASET = RetrievalDataset("numbers", CORPUS, QUERIES, QRELS)


@given(st.integers(0, 15), st.integers(0, 70), st.integers(0, 5), st.randoms())
def test_the_order_of_the_data_does_not_matter(queries: int, documents: int, seed: int, random: Random) -> None:
    keys = [list(mapping) for mapping in (CORPUS, QUERIES, QRELS["train"])]
    for key_list in keys:
        random.shuffle(key_list)
    shuffled = RetrievalDataset(
        "numbers",
        {key: CORPUS[key] for key in keys[0]},
        {key: QUERIES[key] for key in keys[1]},
        {"test": QRELS["test"], "train": {key: QRELS["train"][key] for key in keys[2]}},
    )
    wanted = {"train": queries, "test": 3}
    one = subset(DATASET, queries=wanted, documents=documents, seed=seed)
    other = subset(shuffled, queries=wanted, documents=documents, seed=seed)
    assert one.fingerprint == other.fingerprint
    assert len(one.split("train")) == min(queries, 12)
    judged_documents = {key for split in one.qrels.values() for grades in split.values() for key in grades}
    assert judged_documents <= one.corpus.keys()
    assert len(one.corpus) == max(len(judged_documents), min(documents, len(CORPUS)))
    assert one.queries.keys() == one.split("train").keys() | one.split("test").keys()


@given(st.integers(0, 11), st.integers(0, 60), st.integers(0, 5))
def test_a_larger_sample_contains_the_smaller(queries: int, documents: int, seed: int) -> None:
    small = subset(DATASET, queries={"train": queries}, documents=documents, seed=seed)
    more_queries = subset(DATASET, queries={"train": queries + 1}, documents=documents, seed=seed)
    more_documents = subset(DATASET, queries={"train": queries}, documents=documents + 1, seed=seed)
    assert small.queries.keys() <= more_queries.queries.keys()
    assert small.corpus.keys() <= more_documents.corpus.keys()


def test_none_keeps_all_that_can_be_used() -> None:
    whole = subset(DATASET, queries={"train": None, "test": None}, documents=None, seed=0)
    assert whole.corpus == CORPUS
    assert "q12" not in whole.split("train")
    assert "q12" not in whole.queries
    assert len(whole.queries) == 19
    assert whole.qrels["test"] == QRELS["test"]


def test_splits_that_are_not_named_are_dropped_and_seeds_differ() -> None:
    samples = [subset(DATASET, queries={"train": 5}, documents=30, seed=seed) for seed in (1, 2)]
    assert [list(sample.qrels) for sample in samples] == [["train"], ["train"]]
    assert samples[0].corpus.keys() != samples[1].corpus.keys()


def test_families_of_kept_documents_stay() -> None:
    whole = replace(DATASET, families=dict.fromkeys(CORPUS, "x"))
    sample = subset(whole, queries={"train": 2}, documents=9, seed=0)
    assert sample.families == dict.fromkeys(sample.corpus, "x")


def test_an_unknown_split_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="data set 'numbers' has no split 'tran'; did you mean 'train'"):
        subset(DATASET, queries={"tran": 5}, documents=None, seed=0)


@given(st.floats(0.05, 0.95), st.integers(0, 3))
def test_parts_that_meet_share_no_query_and_leave_none_out(share: float, seed: int) -> None:
    first, second = (part(DATASET, "train", shares, seed) for shares in ((0.0, share), (share, 1.0)))
    one, other = first.qrels["train"].keys(), second.qrels["train"].keys()
    assert not one & other
    # The one without a relevant document is in neither.
    assert one | other == QRELS["train"].keys() - {"q12"}
    assert len(one) == round(share * 12)
    assert first.corpus == CORPUS and first.qrels["test"] == QRELS["test"]


def test_a_sample_of_a_part_is_not_the_beginning_of_the_whole() -> None:
    own = part(DATASET, "train", (0.5, 1.0), 0)
    assert part(DATASET, "train", (0.0, 1.0), 0) is DATASET
    drawn = subset(own, queries={"train": 3}, documents=None, seed=0).qrels["train"].keys()
    assert drawn < own.qrels["train"].keys()
