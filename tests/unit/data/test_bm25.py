"""BM25: the formula, ties, and the corners where there is little to search."""

from __future__ import annotations

import math
import random

import pytest

from unimoer.data.bm25 import BM25
from unimoer.types import RetrievalDataset


def test_scores_are_bm25_with_k1_and_b() -> None:
    documents = {"a": "cat cat dog", "b": "dog bird", "c": "fish fish fish fish"}
    run = BM25(documents).search({"q": "cats dogs"}, 10)["q"]

    def weight(frequency: int, length: int, holding: int) -> float:
        idf = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return idf * frequency / (frequency + 0.9 * (1 - 0.4 + 0.4 * length / 3))

    assert run == {
        "a": pytest.approx(weight(2, 3, 1) + weight(1, 3, 2), rel=1e-6),
        "b": pytest.approx(weight(1, 2, 2), rel=1e-6),
    }
    assert list(run) == ["a", "b"]


def test_equal_scores_are_ordered_by_id_whatever_the_insertion_order() -> None:
    ids = [f"d{number:02d}" for number in range(40)]
    shuffled = ids.copy()
    random.Random(3).shuffle(shuffled)
    documents = dict.fromkeys(shuffled, "same words") | {"best": "same same words", "none": "other"}
    for top_k in (1, 2, 7, 41, 100):
        run = BM25(documents).search({"q": "same"}, top_k)["q"]
        assert list(run) == ["best", *ids][:top_k]


def test_a_query_without_known_terms_and_an_empty_corpus_find_nothing() -> None:
    queries = {"unknown": "zebra", "stop": "the of and", "empty": "", "known": "cat"}
    assert BM25({"a": "cat"}).search(queries, 5)["known"].keys() == {"a"}
    found = BM25({"a": "cat", "b": "dog"}).search(queries, 5)
    assert [list(found[key]) for key in queries] == [[], [], [], ["a"]]
    for documents in ({}, {"a": "", "b": "the"}):
        assert BM25(documents).search(queries, 5) == {key: {} for key in queries}


def test_score_gives_the_search_scores_and_zero_elsewhere(dataset: RetrievalDataset) -> None:
    index = BM25.of(dataset)
    found = index.search(dataset.queries, 10)
    scored = index.score(dataset.queries, {query: list(dataset.corpus) for query in dataset.queries})
    for query, scores in scored.items():
        assert scores == {key: found[query].get(key, 0.0) for key in dataset.corpus}


def test_titles_are_indexed(dataset: RetrievalDataset) -> None:
    assert list(BM25.of(dataset).search({"q": "cherry"}, 3)["q"]) == ["d3"]


@pytest.mark.parametrize(
    "name", ["readConfigFile", "read_config_file", "ReadConfigFile", "READ_CONFIG_FILE", "HTTPConfig"]
)
def test_identifiers_are_found_by_their_parts_and_as_a_whole(name: str) -> None:
    documents = {"code": f"def {name}(path):", "other": "def write(path):"}
    assert BM25(documents).search({"q": "config"}, 3)["q"] == {}
    split = BM25(documents, split_identifiers=True)
    assert list(split.search({"q": "config"}, 3)["q"]) == ["code"]
    assert list(split.search({"q": name}, 3)["q"]) == ["code"]


def test_the_fingerprint_names_documents_and_settings() -> None:
    documents = {"a": "one", "b": "two"}
    same = BM25(dict(reversed(documents.items())))
    assert BM25(documents).fingerprint == same.fingerprint
    others = [BM25({"a": "one", "b": "2"}), BM25(documents, b=0.5), BM25(documents, split_identifiers=True)]
    assert len({index.fingerprint for index in [same, *others]}) == 4
