"""Suites: a name, a folder of BEIR folders, or collections written out; and where candidates come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import CollectionConfig, SuiteConfig
from unimoer.data import write_beir
from unimoer.data.embedded import DOMAINS
from unimoer.data.trec import write_trec
from unimoer.errors import UserError
from unimoer.evaluation import first_stage
from unimoer.evaluation.evaluate import rank
from unimoer.evaluation.first_stage import (
    bm25_run,
    is_shared,
    random_run,
    random_search,
    shared_candidates,
)
from unimoer.evaluation.measures import Measure, measures
from unimoer.evaluation.suites import Collection, list_collections, load_suite
from unimoer.types import Document, RetrievalDataset, Task


def suite(**content: Any) -> SuiteConfig:
    return SuiteConfig.model_validate(content)


@pytest.fixture
def folder(data: dict[str, Path]) -> Path:
    """Of both tiny domains, and something that is no collection."""
    parent = next(iter(data.values())).parent
    assert {path.name for path in parent.iterdir()} >= set(tiny.THINGS)
    return parent


@pytest.fixture
def kitchen(folder: Path) -> Collection:
    return load_suite(suite(collections=str(folder), only=["kitchen"], queries=6))["kitchen"]


def test_a_folder_of_folders_is_a_suite(folder: Path) -> None:
    found = load_suite(suite(collections=str(folder), queries=5, documents=20))
    assert list(found) == sorted(tiny.THINGS)
    for name, collection in found.items():
        assert (collection.name, collection.split) == (name, "test")
        assert (len(collection.qrels), len(collection.dataset.corpus)) == (5, 20)
        assert list(collection.queries) == sorted(collection.qrels)


def test_one_collection_may_differ_from_the_rest(folder: Path) -> None:
    written = {name: {"source": str(folder / name)} for name in tiny.THINGS}
    written["garden"] |= {"queries": 2, "split": "train"}
    found = load_suite(suite(collections=written, queries=4))
    assert [len(found[name].qrels) for name in ("kitchen", "garden")] == [4, 2]
    assert found["garden"].split == "train"


def test_the_embedded_suite_lists_the_training_domains() -> None:
    found = list_collections(suite(collections="embedded", queries=50))
    assert {"attack", "cwe", "hpo", "code"} <= set(found)
    assert found["code"].split_identifiers and not found["hpo"].split_identifiers
    assert all(one.queries == 50 and one.source == f"embedded:{name}" for name, one in found.items())
    assert set(found) <= set(DOMAINS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"collections": "embeded"}, "no suite or folder 'embeded'; did you mean 'embedded'?"),
        ({"collections": "embedded", "only": ["hop"]}, "suite 'embedded' has no collection 'hop'; did you mean 'hpo'?"),
    ],
)
def test_what_is_not_there_is_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        list_collections(suite(**content))
    assert message in str(caught.value)


def test_a_folder_without_collections_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match=r"no folder with a corpus\.jsonl in it"):
        list_collections(suite(collections=str(tmp_path)))


def test_a_split_without_a_relevant_document_is_named(tmp_path: Path) -> None:
    corpus = {"d0": Document("a kettle"), "d1": Document("a bowl")}
    qrels = {"train": {"q": {"d0": 1}}, "test": {"q": {"d1": 0}}}
    write_beir(RetrievalDataset("own", corpus, {"q": "kettle"}, qrels), tmp_path / "own")
    with pytest.raises(UserError, match=r"collection 'own': split 'test' of .* has no query with a relevant document"):
        load_suite(suite(collections=str(tmp_path)))


def test_bm25s_candidates_are_its_ranking(kitchen: Collection) -> None:
    run = shared_candidates("bm25", kitchen, 5)
    assert run == bm25_run(kitchen, 5)
    assert run.keys() == kitchen.qrels.keys()
    for scores in run.values():
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert is_shared("bm25") and is_shared("run.trec") and not is_shared("dense")


def test_a_random_order_is_the_same_everywhere_and_knows_nothing(kitchen: Collection) -> None:
    candidates = bm25_run(kitchen, 5)
    first, second = random_run(candidates), random_run(candidates)
    assert first == second
    assert {q: set(d) for q, d in first.items()} == {q: set(d) for q, d in candidates.items()}
    assert all(0 <= score < 1 for scores in first.values() for score in scores.values())
    assert len({tuple(sorted(scores, key=scores.__getitem__)) for scores in random_search(kitchen, 30).values()}) == 6


@pytest.mark.parametrize("as_folder", [False, True])
def test_anybodys_run_file_is_a_first_stage(as_folder: bool, kitchen: Collection, tmp_path: Path) -> None:
    wanted = {query: dict.fromkeys(list(kitchen.dataset.corpus)[:3], 1.0) for query in kitchen.qrels}
    place = tmp_path / ("kitchen.trec" if as_folder else "anything.trec")
    write_trec({**wanted, "of-another-split": {"d0": 1.0}}, place, "other-engine")
    assert shared_candidates(str(tmp_path if as_folder else place), kitchen, 5) == wanted


def test_a_run_file_of_other_documents_is_refused(kitchen: Collection, tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    query = next(iter(kitchen.qrels))
    write_trec({query: {"d0": 2.0, "nowhere": 1.0}}, path, "x")
    with pytest.raises(UserError, match=f"document 'nowhere' of query '{query}' is not in collection 'kitchen'"):
        shared_candidates(str(path), kitchen, 5)
    write_trec({"other": {"d0": 2.0}}, path, "x")
    with pytest.raises(UserError, match="no candidates for any query of collection 'kitchen'"):
        shared_candidates(str(path), kitchen, 5)
    with pytest.raises(UserError, match="no such run file"):
        shared_candidates(str(tmp_path / "missing.trec"), kitchen, 5)


def test_a_wrong_source_or_split_names_its_collection(data: dict[str, Path]) -> None:
    for config, message in (
        ({"source": "atack"}, r"^collection 'mine': folder 'atack' does not exist; did you mean 'attack'\?$"),
        ({"source": "embedded:atack"}, r"^collection 'mine': unknown embedded data set 'atack'; did you mean 'attack'"),
        (
            {"source": str(data["kitchen"]), "split": "tset"},
            r"^collection 'mine': .*kitchen has no split 'tset'; did you mean 'test'\?$",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_suite(SuiteConfig.model_validate({"collections": {"mine": config}}))


def test_a_random_order_of_a_large_corpus_does_not_hash_every_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn, the same on every machine, and another for every query."""
    monkeypatch.setattr(first_stage, "LARGE", 20)
    monkeypatch.setattr(first_stage, "_unit", lambda key: pytest.fail("a document was hashed"))
    corpus = {f"d{n}": Document("text") for n in range(30)}
    queries = {"q1": "a", "q2": "b"}
    qrels = {query: {"d1": 1} for query in queries}
    dataset = RetrievalDataset("large", corpus, queries, {"test": qrels})
    collection = Collection("large", CollectionConfig(source="x"), "test", dataset, qrels)
    found = first_stage.random_search(collection, k=8)
    assert found == first_stage.random_search(collection, k=8)
    assert all(len(found[query]) == len(set(found[query].values())) == 8 for query in queries)
    assert list(found["q1"]) != list(found["q2"])
    assert len(first_stage.random_search(collection, k=100)["q1"]) == 30


def test_a_deeper_list_of_candidates_does_not_deepen_bm25s_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "SEARCH_DEPTH", 5)
    corpus = {f"d{n}": Document("text") for n in range(30)}
    dataset = RetrievalDataset("deep", corpus, {"q": "a"}, {"test": {"q": {"d1": 1}}})
    collection = Collection("deep", CollectionConfig(source="x"), "test", dataset, {"q": {"d1": 1}})
    candidates = {"q": {f"d{n}": float(-n) for n in range(20)}}
    run = rank("bm25", collection, candidates, Task.EMBEDDING, depth=20)
    assert list(run["q"]) == ["d0", "d1", "d2", "d3", "d4"]
    assert len(rank("bm25", collection, candidates, Task.RERANKING, depth=20)["q"]) == 20


def test_measures_come_in_the_order_of_stages_whatever_an_arm_names_first() -> None:
    found = measures((Task.RERANKING, Task.EMBEDDING), whole=False)
    assert found == [Measure.EMBEDDING, Measure.RERANKING]
