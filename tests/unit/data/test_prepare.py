"""From a configuration to examples, test queries and candidate lists."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from unimoer.config import DataConfig
from unimoer.data import write_beir
from unimoer.data.prepare import PreparedDomain, left_out, prepare, training_examples
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset


def prepared(data: dict[str, Path], negatives: dict[str, Any] | None = None, **changes: Any) -> PreparedDomain:
    domain = {"source": str(data["kitchen"])} | changes
    config = DataConfig.model_validate({"domains": {"kitchen": domain}, "negatives": negatives or {}})
    return prepare(config, depth=5)["kitchen"]


def test_examples_have_positives_and_negatives_that_look_alike(data: dict[str, Path]) -> None:
    domain = prepared(data, {"num_negatives": 4})
    assert len(domain.examples) == 60
    for example in domain.examples:
        assert example.domain == "kitchen"
        assert domain.dataset.queries[example.query_id] == example.query
        assert domain.dataset.qrels["train"][example.query_id].keys() == set(example.positive_ids)
        assert len(example.negative_ids) == 4
        assert not set(example.negative_ids) & set(example.positive_ids)
        title = set(domain.dataset.corpus[example.positive_ids[0]].title.split())
        assert title & set(domain.dataset.corpus[example.negative_ids[0]].title.split())


def test_candidates_are_the_best_of_bm25_for_every_test_query(data: dict[str, Path]) -> None:
    domain = prepared(data)
    assert domain.candidates.keys() == domain.test.keys() == domain.dataset.qrels["test"].keys()
    for scores in domain.candidates.values():
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert scores.keys() <= domain.dataset.corpus.keys()


def test_samples_are_the_same_every_time_and_test_documents_stay(data: dict[str, Path]) -> None:
    first, second = (prepared(data, train_queries=10, test_queries=3, documents=15) for _ in range(2))
    assert (len(first.examples), len(first.test), len(first.dataset.corpus)) == (10, 3, 15)
    assert first.examples == second.examples
    assert first.dataset.fingerprint == second.dataset.fingerprint
    for grades in (*first.test.values(), *first.dataset.qrels["train"].values()):
        assert grades.keys() <= first.dataset.corpus.keys()


def test_a_domain_can_be_for_training_or_evaluation_alone(data: dict[str, Path]) -> None:
    only_test = prepared(data, train=False)
    assert only_test.examples == ()
    assert only_test.test
    assert "train" not in only_test.dataset.qrels
    only_train = prepared(data, evaluate=False)
    assert only_train.examples
    assert (only_train.test, only_train.candidates) == ({}, {})
    assert training_examples({"a": only_test, "b": only_train}).keys() == {"b"}


def test_negatives_that_the_data_brings_come_before_mined_ones(tmp_path: Path) -> None:
    corpus = {f"d{number}": Document(f"red kettle number {number}") for number in range(6)}
    qrels = {"train": {"q": {"d0": 1, "d5": 0, "d4": -1}}, "test": {"q": {"d1": 1}}}
    write_beir(RetrievalDataset("own", corpus, {"q": "red kettle"}, qrels), tmp_path / "own")
    [example] = prepared({"kitchen": tmp_path / "own"}).examples
    assert example.negative_ids[:2] == ("d5", "d4")
    # d1 is relevant by the test split: mining knows better than to call it a negative.
    assert set(example.negative_ids[2:]) == {"d2", "d3"}
    [unmined] = prepared({"kitchen": tmp_path / "own"}, mine_negatives=False).examples
    assert unmined.negative_ids == ("d5", "d4")


def test_a_split_that_is_missing_or_empty_is_named(data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'"):
        prepared(data, test_split="tset")
    corpus = {"d0": Document("a kettle"), "d1": Document("a bowl")}
    qrels = {"train": {"q": {"d0": 1}}, "test": {"q": {"d1": 0}}}
    write_beir(RetrievalDataset("own", corpus, {"q": "kettle"}, qrels), tmp_path / "own")
    with pytest.raises(UserError, match=r"data\.domains\.kitchen: split 'test' of .* has no query with a positive"):
        prepared({"kitchen": tmp_path / "own"})


def test_what_reading_left_out_is_told(data: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "kitchen"
    shutil.copytree(data["kitchen"], folder)
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q2\tnowhere\t1\nq2\tnowhere\t1\n")
    domain = prepared({"kitchen": folder}, train_queries=10, documents=15)
    assert left_out({"kitchen": domain}) == [
        f"kitchen: {folder}/qrels/test.tsv:17: document 'nowhere' is judged but is not in the corpus "
        "(left out; 2 such judgements)"
    ]
