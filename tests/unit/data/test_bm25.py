"""BM25: the formula, ties, and the corners where there is little to search."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from unimoer.data import bm25, postings
from unimoer.data.bm25 import BM25
from unimoer.types import RetrievalDataset


def crowd(documents: int = 300, queries: int = 40) -> tuple[dict[str, str], dict[str, str]]:
    """Texts of few frequent and many rare words, so that scores tie; some queries repeat a word or know none."""
    generator = np.random.default_rng(5)

    def text(length: int) -> str:
        return " ".join(f"w{number}" for number in np.minimum(generator.zipf(1.4, length), 60))

    corpus = {f"d{number}": text(1 + number % 9) for number in range(documents)} | {"empty": "", "stop": "the of"}
    return corpus, {f"q{number}": text(number % 6) for number in range(queries)}


@pytest.mark.parametrize("top_k", [1, 3, 20, 1000])
def test_scores_and_order_are_those_of_bm25s_bit_for_bit(top_k: int) -> None:
    documents, queries = crowd()
    ids = sorted(documents)
    options = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    peer = bm25s.BM25(k1=0.9, b=0.4, backend="numpy")
    peer.index(bm25s.tokenize([documents[key] for key in ids], **options), show_progress=False)
    index = BM25(documents)
    found = index.search(queries, top_k)
    every = index.score(queries, dict.fromkeys(queries, ids))
    for query, text in queries.items():
        [tokens] = bm25s.tokenize([text], return_ids=False, **options)
        scores = peer.get_scores_from_ids(peer.get_tokens_ids(tokens))
        assert list(every[query].values()) == scores.tolist()
        ranked = sorted((-score, key) for key, score in zip(ids, scores.tolist(), strict=True) if score > 0)
        assert list(found[query].items()) == [(key, -score) for score, key in ranked[:top_k]]


def test_chunks_files_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = crowd()
    whole = BM25(documents)
    expected = whole.search(queries, 15)
    assert sum(map(len, expected.values())) > 300
    monkeypatch.setattr(postings, "CHUNK", 7)
    monkeypatch.setattr(postings, "IN_MEMORY", 50)
    monkeypatch.setattr(postings, "REMEMBERED", 40)
    written = BM25(documents, folder=tmp_path / "index")
    for index in (BM25(documents), written, BM25.load(tmp_path / "index")):
        for threads in (1, 3):
            found = index.search(queries, 15, threads=threads)
            assert [list(scores.items()) for scores in found.values()] == [
                list(scores.items()) for scores in expected.values()
            ]
        assert index.fingerprint == whole.fingerprint
        assert index.score(queries, {"q5": ["d7", "empty"]}) == whole.score(queries, {"q5": ["d7", "empty"]})
    with pytest.raises(KeyError):
        written.score(queries, {"q5": ["absent"]})


def test_bm25s_opens_the_files_memory_mapped(tmp_path: Path) -> None:
    documents, queries = crowd()
    index = BM25(documents, folder=tmp_path / "index")
    peer = bm25s.BM25.load(tmp_path / "index", mmap=True)
    tokens = bm25s.tokenize(
        [queries["q5"]], return_ids=False, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False
    )
    scores = peer.get_scores(tokens[0])
    assert dict(zip(sorted(documents), scores.tolist(), strict=True)) == index.score(queries, {"q5": documents})["q5"]


def test_a_large_corpus_is_indexed_once(
    dataset: RetrievalDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = BM25.of(dataset).search(dataset.queries, 5)
    assert not (cache / "bm25").exists()
    monkeypatch.setattr(bm25, "LARGE", 5)
    assert BM25.of(dataset).search(dataset.queries, 5) == expected

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("indexed again")

    monkeypatch.setattr(bm25, "build", forbidden)
    assert BM25.of(dataset).search(dataset.queries, 5) == expected
    with pytest.raises(AssertionError, match="indexed again"):
        BM25.of(dataset, split_identifiers=True)
    assert len(list((cache / "bm25").iterdir())) == 1


@given(st.lists(st.one_of(st.text(), st.sampled_from(["The CATS' cat", "naïve İstanbul x_1", "a I running-runs"]))))
@settings(deadline=None)
def test_words_are_those_of_bm25s_whatever_the_text(texts: list[str]) -> None:
    stemmer = Stemmer.Stemmer("english")
    stems = postings._Stems(stemmer)
    terms, documents, frequencies, lengths = postings._count(texts, stems)
    names = list(stems.numbers)
    found: list[Counter[str]] = [Counter() for _ in texts]
    for term, document, frequency in zip(terms, documents, frequencies, strict=True):
        found[document][names[term]] = int(frequency)
    expected = postings.words(texts, stemmer)
    assert found == [Counter(words) for words in expected]
    assert lengths.tolist() == list(map(len, expected))


@pytest.mark.parametrize("documents", [{}, {"a": "", "b": "the"}])
def test_an_index_of_nothing_can_be_kept(documents: dict[str, str], tmp_path: Path) -> None:
    BM25(documents, folder=tmp_path / "index")
    assert BM25.load(tmp_path / "index").search({"q": "cat"}, 5) == {"q": {}}


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
