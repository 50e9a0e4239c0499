"""Mining: each filter, what may never be a negative, and the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unimoer.config import NegativesConfig
from unimoer.data import negatives
from unimoer.data.bm25 import BM25
from unimoer.data.negatives import judged_negatives, mine, mine_cached
from unimoer.data.trec import read_trec, write_trec
from unimoer.types import Document, RetrievalDataset

CORPUS = {f"d{number}": Document(f"text {number}") for number in range(8)}
DATASET = RetrievalDataset("x", CORPUS, {"q": "text"}, {"train": {"q": {"d3": 1}}})
RUN = {"q": {"d0": 10.0, "d1": 9.6, "d2": 9.4, "d3": 10.0, "d4": 9.55, "d5": 5.0, "d6": 5.0, "d7": -1.0}}


def mined(dataset: RetrievalDataset = DATASET, run: dict[str, dict[str, float]] = RUN, **config: object) -> list[str]:
    settings = NegativesConfig.model_validate({"num_negatives": 10, **config})
    return mine(dataset, "train", scorer=run, config=settings)["q"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"strategy": "none"}, ["d0", "d1", "d4", "d2", "d5", "d6", "d7"]),
        ({"strategy": "none", "num_negatives": 2}, ["d0", "d1"]),
        ({"strategy": "none", "range_min": 2}, ["d4", "d2", "d5", "d6", "d7"]),
        ({"strategy": "none", "range_min": 1, "range_max": 3}, ["d1", "d4"]),
        ({"strategy": "absolute", "max_score": 9.55}, ["d2", "d5", "d6", "d7"]),
        ({"strategy": "margin_pos", "margin": 0.5}, ["d2", "d5", "d6", "d7"]),
        ({"strategy": "percent_pos", "percent": 0.95}, ["d2", "d5", "d6", "d7"]),
        ({"strategy": "percent_pos", "percent": 0.5}, ["d7"]),
        ({"strategy": "percent_pos", "percent": 0.95, "range_max": 4}, ["d2"]),
    ],
)
def test_filters(config: dict[str, object], expected: list[str]) -> None:
    assert mined(**config) == expected


@pytest.mark.parametrize(("positive", "expected"), [(-1.0, ["c"]), (0.0, ["a", "b", "c"]), (2.0, ["a", "b", "c"])])
def test_a_percentage_of_a_positive_that_is_not_above_zero_admits_nothing_above_it(
    positive: float, expected: list[str]
) -> None:
    """0.95 * -1 is -0.95: taken literally, documents that outrank the positive would pass for easy."""
    dataset = replace(DATASET, corpus={key: Document(key) for key in "abcp"}, qrels={"train": {"q": {"p": 1}}})
    run = {"q": {"p": positive, "a": -0.97, "b": -1.0, "c": -1.2}}
    assert mined(dataset, run, strategy="percent_pos") == expected


def test_the_lowest_positive_decides() -> None:
    dataset = replace(DATASET, qrels={"train": {"q": {"d3": 1, "d5": 2, "d4": 0}}})
    assert mined(dataset, strategy="percent_pos") == ["d7"]


def test_a_positive_that_the_run_does_not_list_scores_at_most_its_last() -> None:
    run = {"q": {"d0": 3.0, "d1": 2.0}}
    assert mined(run=run, strategy="percent_pos") == []
    assert mined(run=run, strategy="none") == ["d0", "d1"]
    assert mined(run={}, strategy="percent_pos") == []


def test_positives_of_other_splits_and_equal_texts_are_never_negatives() -> None:
    corpus = {**CORPUS, "d0": Document("text 3"), "d1": Document("3", "text")}
    dataset = replace(DATASET, corpus=corpus, qrels={**DATASET.qrels, "test": {"q": {"d2": 1}}})
    assert mined(dataset, strategy="none") == ["d1", "d4", "d5", "d6", "d7"]


def test_relatives_of_a_positive_are_never_negatives() -> None:
    families = {"d3": "x", "d0": "x", "d5": "x", "d1": "y", "d2": "y"}
    dataset = replace(DATASET, families=families)
    assert mined(dataset, strategy="none") == ["d1", "d4", "d2", "d6", "d7"]
    assert mined(dataset, strategy="none", num_negatives=2, range_max=2) == ["d1", "d4"]
    twice = replace(dataset, qrels={"train": {"q": {"d3": 1}}, "test": {"q": {"d2": 1}}})
    assert mined(twice, strategy="none") == ["d4", "d6", "d7"]
    assert dataset.fingerprint != DATASET.fingerprint


def test_bm25_looks_past_the_relatives_of_a_positive() -> None:
    """The family fills the top ranks; as many negatives are found as without it."""
    corpus = {f"d{number}": Document("apple " * (9 - number) + "tree " * (number + 1)) for number in range(8)}
    families = dict.fromkeys(["d0", "d1", "d2", "d3", "d4"], "x")
    dataset = RetrievalDataset("x", corpus, {"q": "apple"}, {"train": {"q": {"d0": 1}}}, families=families)
    config = NegativesConfig(strategy="none", range_max=3, num_negatives=3)
    assert mine(dataset, "train", scorer=BM25.of(dataset), config=config) == {"q": ["d5", "d6", "d7"]}


def test_bm25_finds_negatives_and_scores_positives_it_does_not_retrieve(dataset: RetrievalDataset) -> None:
    index = BM25.of(dataset)
    every = mine(dataset, "train", scorer=index, config=NegativesConfig(strategy="none"))
    assert every == {"q1": ["d4", "d5"], "q2": []}
    shallow = NegativesConfig(strategy="percent_pos", range_max=1)
    hidden = replace(dataset, qrels={"train": {"q1": {"d3": 1}}})
    assert index.score(hidden.queries, {"q1": ["d3"]}) == {"q1": {"d3": 0.0}}
    assert mine(hidden, "train", scorer=index, config=shallow) == {"q1": []}


def test_queries_without_a_relevant_document_are_left_out() -> None:
    dataset = replace(DATASET, qrels={"train": {"q": {"d3": 0}}})
    assert mine(dataset, "train", scorer=RUN) == {}
    assert mine(dataset, "test", scorer=RUN) == {}


def test_judged_negatives(dataset: RetrievalDataset) -> None:
    assert judged_negatives(dataset, "train") == {"q1": ["d2"], "q2": []}


def test_the_cache_is_hit_for_the_same_question_only(
    dataset: RetrievalDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mine_cached(dataset, "train")
    [file] = (cache / "negatives").iterdir()
    assert json.loads(file.read_text()) == first == mine(dataset, "train", scorer=BM25.of(dataset))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("mined again")

    with monkeypatch.context() as patch:
        patch.setattr(negatives, "_mine", forbidden)
        assert mine_cached(dataset, "train") == first

    mine_cached(dataset, "test")
    mine_cached(dataset, "train", config=NegativesConfig(num_negatives=1))
    mine_cached(dataset, "train", config=NegativesConfig(split_identifiers=True))
    mine_cached(dataset, "train", scorer={"q1": {"d5": 1.0}})
    mine_cached(dataset, "train", scorer={"q1": {"d5": 2.0}})
    mine_cached(dataset, "train", scorer=BM25.of(dataset))
    mine_cached(replace(dataset, queries={**dataset.queries, "q1": "pears"}), "train")
    assert len(list((cache / "negatives").iterdir())) == 8


def test_a_killed_miner_loses_one_batch_and_mines_nothing_twice(
    dataset: RetrievalDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = {f"q{number}": text for number, text in enumerate(["orchard apples", "yellow", "red", "small", "plums"])}
    dataset = replace(dataset, queries=queries, qrels={"train": {query: {"d1": 1} for query in queries}})
    expected = mine(dataset, "train", scorer=BM25.of(dataset))
    assert any(expected.values())
    monkeypatch.setattr(negatives, "BATCH", 2)
    search, asked = BM25.search, list[str]()

    def dies(self: BM25, queries: dict[str, str], top_k: int) -> dict[str, dict[str, float]]:
        if len(asked) >= 2:
            raise KeyboardInterrupt
        asked.extend(queries)
        return search(self, queries, top_k)

    with monkeypatch.context() as patch:
        patch.setattr(BM25, "search", dies)
        with pytest.raises(KeyboardInterrupt):
            mine_cached(dataset, "train")
    [partial] = (cache / "negatives").iterdir()
    with partial.open("ab") as file:
        file.write(b'["q2", ["d')  # killed in the middle of a line

    def counts(self: BM25, queries: dict[str, str], top_k: int) -> dict[str, dict[str, float]]:
        asked.extend(queries)
        return search(self, queries, top_k)

    monkeypatch.setattr(BM25, "search", counts)
    found = mine_cached(dataset, "train")
    assert asked == list(queries)
    assert found == expected
    assert list(found) == list(expected)
    [file] = (cache / "negatives").iterdir()
    assert json.loads(file.read_text()) == expected


def test_the_ranking_of_another_engine_mines(dataset: RetrievalDataset, tmp_path: Path) -> None:
    path = tmp_path / "bm25.trec"
    write_trec(BM25.of(dataset).search(dataset.queries, 100), path, "engine")
    settings = NegativesConfig(strategy="percent_pos")
    run = read_trec(path)
    assert mine(dataset, "train", scorer=run, config=settings) == mine(
        dataset, "train", scorer=BM25.of(dataset), config=settings
    )
