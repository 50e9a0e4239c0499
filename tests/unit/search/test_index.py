"""An index: what is found, what is added, replaced and deleted, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from unimoer import UniMoER
from unimoer.errors import UserError
from unimoer.evaluation.fusion import combine
from unimoer.model.checkpoint import save_model
from unimoer.search import Hits, SearchIndex, index
from unimoer.search.index import WORDS

TEXTS = {key: document.content for key, document in tiny.dataset("kitchen").corpus.items()}
QUERY = "find my red kettle"


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "checkpoint"
    save_model(tiny.build(base, noise=0.3), folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> UniMoER:
    return UniMoER.load(checkpoint, device="cpu")


def made(folder: Path, checkpoint: Path, texts: Any = TEXTS) -> SearchIndex:
    found = SearchIndex.create(folder, checkpoint, device="cpu")
    found.add(texts)
    return found


def ids(found: SearchIndex, query: str = QUERY, k: int = 10, **options: Any) -> list[str]:
    return [hit.id for hit in found.search(query, k, **options).hits]


def same(found: Hits, expected: Hits) -> None:
    """But for the rounding of vectors that were computed beside other texts."""
    assert [(hit.id, hit.text) for hit in found.hits] == [(hit.id, hit.text) for hit in expected.hits]
    np.testing.assert_allclose([hit.score for hit in found.hits], [hit.score for hit in expected.hits], atol=1e-3)


def test_vectors_words_and_both_find_what_they_should(model: UniMoER, checkpoint: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "index", checkpoint)
    vectors = model.encode(list(TEXTS.values()), "document").astype(np.float16).astype(np.float32)
    cosines = dict(zip(TEXTS, (vectors @ model.encode([QUERY], "query")[0]).tolist(), strict=True))
    dense = found.search(QUERY, 10, retrieve="dense").hits
    assert [hit.id for hit in dense] == sorted(cosines, key=lambda key: (-cosines[key], key))[:10]
    assert dense[0].score == dense[0].retrieval == pytest.approx(cosines[dense[0].id], abs=1e-5)
    words = found.search(QUERY, 10, retrieve="bm25").hits
    assert "red kettle" in words[0].text and words[0].text == TEXTS[words[0].id]
    both = found.search(QUERY, 100).hits
    # Of what either has found: here all of the small corpus, so every list is whole.
    lists = ({"": cosines}, {"": {hit.id: hit.score for hit in found.search(QUERY, 100, retrieve="bm25").hits}})
    expected = combine([(lists[0], 1.0), (lists[1], WORDS)])[""]
    assert [hit.id for hit in both] == sorted(expected, key=lambda key: (-expected[key], key))
    assert ids(found, rrf=True) != [] and ids(found, k=3) == ids(found)[:3]


def test_the_best_are_scored_again_and_the_rest_follow(model: UniMoER, checkpoint: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "index", checkpoint)
    plain, again = found.search(QUERY, 12), found.search(QUERY, 12, rerank=5)
    assert {hit.id for hit in again.hits[:5]} == {hit.id for hit in plain.hits[:5]}
    assert [hit.id for hit in again.hits[5:]] == [hit.id for hit in plain.hits[5:]]
    own = model.score([(QUERY, hit.text) for hit in again.hits[:5]])
    np.testing.assert_allclose([hit.reranking for hit in again.hits[:5]], own, atol=1e-4)
    assert [hit.reranking for hit in again.hits[5:]] == [None] * 7
    assert [hit.score for hit in again.hits[:5]] == sorted((hit.score for hit in again.hits[:5]), reverse=True)
    assert again.milliseconds.keys() == {"embed", "dense", "bm25", "rerank"}


def test_documents_come_change_and_go_without_a_rebuild(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "PART", 7)
    found = SearchIndex.create(tmp_path / "index", checkpoint, device="cpu")
    embedded: list[str] = []
    encode = found.model.encode

    def watched(texts: Any, kind: Any, **options: Any) -> Any:
        embedded.extend(texts if kind == "document" else [])
        return encode(texts, kind, **options)

    monkeypatch.setattr(found.model, "encode", watched)
    assert found.add(TEXTS) == {"added": 30, "replaced": 0, "unchanged": 0}
    assert len(found) == 30 and len(embedded) == 30
    assert found.add(TEXTS) == {"added": 0, "replaced": 0, "unchanged": 30}
    assert len(embedded) == 30
    changed = {**TEXTS, "d3": "A purple elephant.", "new": "A yellow submarine."}
    assert found.add(changed) == {"added": 1, "replaced": 1, "unchanged": 29}
    assert embedded[30:] == ["A purple elephant.", "A yellow submarine."]
    assert len(found) == 31 and "new" in found
    assert ids(found, "purple elephant", retrieve="bm25") == ["d3"]
    assert found.search(TEXTS["d3"], 31, retrieve="dense").hits[-1].text != TEXTS["d3"]
    assert found.delete(["d3", "new", "unknown"]) == 2
    assert ids(found, "purple elephant", retrieve="bm25") == []
    assert {"d3", "new"}.isdisjoint(ids(found, "purple elephant", k=40)) and len(found) == 29
    assert found.keep_only(["d1", "d2"]) == 27 and sorted(ids(found, k=40)) == ["d1", "d2"]
    # As another process sees it, and as an index that was made at once has it.
    fresh = SearchIndex.open(tmp_path / "index", device="cpu")
    alone = made(tmp_path / "alone", checkpoint, {key: TEXTS[key] for key in ("d1", "d2")})
    for how in ("dense", "bm25", "fused"):
        same(fresh.search(QUERY, retrieve=how), alone.search(QUERY, retrieve=how))
    assert found.delete(["d1", "d2"]) == 2 and ids(found) == [] and len(SearchIndex.open(tmp_path / "index")) == 0


def test_the_later_of_two_texts_counts(checkpoint: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "index", checkpoint, iter([("a", "one"), ("b", "two"), ("a", "three"), ("b", "two")]))
    assert len(found) == 2
    assert {hit.id: hit.text for hit in found.search("one", 5).hits} == {"a": "three", "b": "two"}


def test_texts_of_every_kind_come_back_as_they_were(checkpoint: Path, tmp_path: Path) -> None:
    texts = {"empty": "", "lines": "a\nb\u2028c", "emoji": "🫖 قدر", "nul": "a\0b", "<|im_end|>": "<|im_start|> red"}
    found = made(tmp_path / "index", checkpoint, texts)
    assert {hit.id: hit.text for hit in found.search("red", 9).hits} == texts
    assert found.search("  \n", 9).hits == []


def test_a_reader_keeps_what_it_has_opened(checkpoint: Path, tmp_path: Path) -> None:
    writer = made(tmp_path / "index", checkpoint)
    reader = SearchIndex.open(tmp_path / "index", device="cpu")
    before = reader.search(QUERY, 30).hits
    writer.keep_only(["d0"])
    assert reader.search(QUERY, 30).hits == before
    assert len(SearchIndex.open(tmp_path / "index", device="cpu")) == 1


def test_two_writers_do_not_meet(checkpoint: Path, tmp_path: Path) -> None:
    """The second one sees what the first has written, although it had opened the index before."""
    first = made(tmp_path / "index", checkpoint, {"a": "red"})
    second = SearchIndex.open(tmp_path / "index", device="cpu")
    first.add({"b": "green"})
    second.add({"c": "blue"})
    assert sorted(ids(SearchIndex.open(tmp_path / "index", device="cpu"), k=9)) == ["a", "b", "c"]

    def meanwhile() -> Iterator[tuple[str, str]]:
        with pytest.raises(UserError, match="works here; wait for it or stop it"):
            first.add({"e": "grey"})
        yield "d", "white"

    second.add(meanwhile())
    assert "e" not in second and "d" in second


def killed(work: Callable[[], None]) -> bool:
    """Whether a process of its own was, in the middle of it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_kill_leaves_the_last_complete_state(
    moment: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second and third part, while BM25 is built, and just before the new state is the one that counts."""
    monkeypatch.setattr(index, "PART", 10)
    folder = tmp_path / "index"
    made(folder, checkpoint, {"a": "red kettle", "d0": "An older text."})

    def add() -> None:
        found = SearchIndex.open(folder, device="cpu")
        parts = 0
        embed = found._embed

        def count(*arguments: Any) -> Any:
            nonlocal parts
            parts += 1
            if parts > moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return embed(*arguments)

        def die(*_: Any, **__: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        found._embed = count  # type: ignore[method-assign]
        if moment == 3:
            monkeypatch.setattr(index, "BM25", type("Dying", (index.BM25,), {"__init__": die}))
        if moment == 4:
            monkeypatch.setattr(index.Store, "commit", die)
        found.add(TEXTS)

    assert killed(add)
    after = SearchIndex.open(folder, device="cpu")
    assert len(after) == 2 and ids(after, "older text", retrieve="bm25") == ["d0"]
    waiting = len(after._store.pending())
    assert waiting == min(moment, 3)
    embedded = 0
    encode = after.model.encode

    def watched(texts: Any, kind: Any, **options: Any) -> Any:
        nonlocal embedded
        embedded += len(texts)
        return encode(texts, kind, **options)

    monkeypatch.setattr(after.model, "encode", watched)
    assert after.add(TEXTS) == {"added": 29, "replaced": 1, "unchanged": 0}
    assert embedded == 30 - 10 * waiting
    whole = made(tmp_path / "whole", checkpoint, {"a": "red kettle", **TEXTS})
    same(after.search(QUERY, 31), whole.search(QUERY, 31))
    # Nothing of the killed call is left over.
    assert {path.name for path in (folder / "parts").iterdir()} == set(after._store.state.parts)
    assert not (folder / "building.json").exists() and len(list((folder / "bm25").iterdir())) == 1


def test_what_another_call_had_begun_is_not_added(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    found = made(folder, checkpoint, {"a": "red kettle"})

    def broken() -> Iterator[tuple[str, str]]:
        yield from TEXTS.items()
        raise RuntimeError

    index_part, index.PART = index.PART, 10
    try:
        with pytest.raises(RuntimeError):
            found.add(broken())
        assert len(found._store.pending()) == 3
        found.add({"b": "a bench", "d1": TEXTS["d1"], "d2": "another text"})
    finally:
        index.PART = index_part
    assert {hit.id: hit.text for hit in found.search(QUERY, 40).hits} == {
        "a": "red kettle",
        "b": "a bench",
        "d1": TEXTS["d1"],
        "d2": "another text",
    }


def test_another_model_is_refused(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    made(tmp_path / "index", checkpoint, {"a": "red"})
    save_model(tiny.build(base, seed=5, noise=0.3), tmp_path / "other")
    for make in (SearchIndex.create, SearchIndex.open):
        with pytest.raises(UserError, match=r"its vectors are of another model: .*checkpoint"):
            make(tmp_path / "index", model=tmp_path / "other", device="cpu")
    # The same model in another place is the same.
    moved = UniMoER.load(checkpoint, device="cpu").save(tmp_path / "moved", base="reference")
    assert len(SearchIndex.open(tmp_path / "index", model=moved, device="cpu")) == 1


def test_folders_that_are_no_index(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index here; make one with `unimoer index`"):
        SearchIndex.open(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is a folder with other files in it"):
        SearchIndex.create(tmp_path, checkpoint)
    assert (tmp_path / "mine.txt").exists()
    found = made(tmp_path / "index", checkpoint, {"a": "red"})
    for wrong in ({"retrieve": "sparse"}, {"depth": 0}, {"rerank": -1}):
        with pytest.raises(ValueError):
            found.search(QUERY, **wrong)
    with pytest.raises(UserError, match="a document has an empty id"):
        found.add({"": "x"})
    content = json.loads((tmp_path / "index" / "index.json").read_text())
    (tmp_path / "index" / "index.json").write_text(json.dumps(content | {"format": 0}))
    with pytest.raises(UserError, match="an index of another version"):
        SearchIndex.open(tmp_path / "index")


def test_a_model_that_only_reranks_indexes_nothing(
    experiment: Callable[..., dict[str, Any]], base: Path, tmp_path: Path
) -> None:
    from unimoer.runs import execute
    from unimoer.studies.planning import single_run

    spec = single_run(tiny.parsed(experiment(arms=["rank_only"], training__reranking__steps=1)), tiny.CPU)
    execute(spec, tmp_path / "run")
    with pytest.raises(UserError, match="was not trained to embed"):
        SearchIndex.create(tmp_path / "index", tmp_path / "run", device="cpu")
    assert not (tmp_path / "index").exists()
