"""An index: what is found, what is added, replaced and deleted, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import tiny
from unimoer import UniMoER
from unimoer.errors import UserError
from unimoer.evaluation.fusion import combine, fuse
from unimoer.library.identity import identity
from unimoer.model.checkpoint import save_model
from unimoer.search import Hits, SearchIndex, changes, neighbours, store
from unimoer.search.snapshot import WORDS

TEXTS = {key: document.content for key, document in tiny.dataset("kitchen").corpus.items()}
QUERY = "find my red kettle"


def made(folder: Path, checkpoint: Path, texts: Any = TEXTS, **kinds: Any) -> SearchIndex:
    found = SearchIndex.create(folder, checkpoint, device="cpu", **kinds)
    found.add(texts)
    return found


def ids(found: SearchIndex, query: str = QUERY, k: int = 10, **options: Any) -> list[str]:
    return [hit.id for hit in found.search(query, k, **options).hits]


def counts(**some: int) -> dict[str, int]:
    return {"added": 0, "replaced": 0, "unchanged": 0, "superseded": 0} | some


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
    ranked = fuse([{"": cosines}, lists[1]])[""]
    assert ids(found, k=30, rrf=True) == sorted(ranked, key=lambda key: (-ranked[key], key)) != ids(found, k=30)
    assert ids(found, k=3) == ids(found)[:3]
    # Of a shorter list from each, others come together.
    assert len(ids(found, k=4, depth=4)) == 4
    near, worded = ids(found, k=4, retrieve="dense"), ids(found, k=4, retrieve="bm25")
    assert set(ids(found, k=4, depth=4)) <= {*near, *worded} != set(ids(found, k=8))


def test_the_best_are_scored_again_and_the_rest_follow(model: UniMoER, checkpoint: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "index", checkpoint)
    plain, again = found.search(QUERY, 12), found.search(QUERY, 12, rerank=5)
    assert {hit.id for hit in again.hits[:5]} == {hit.id for hit in plain.hits[:5]}
    assert [hit.id for hit in again.hits[5:]] == [hit.id for hit in plain.hits[5:]]
    scores = model.score([(QUERY, hit.text) for hit in again.hits[:5]])
    np.testing.assert_allclose([hit.reranking for hit in again.hits[:5]], scores, atol=1e-4)
    assert [hit.reranking for hit in again.hits[5:]] == [None] * 7
    assert [hit.score for hit in again.hits] == sorted((hit.score for hit in again.hits), reverse=True)
    own = {hit.id: hit.reranking or 0.0 for hit in again.hits[:5]}
    both = combine([({"": own}, 1.0), ({"": {hit.id: hit.retrieval for hit in plain.hits[:5]}}, WORDS)])[""]
    assert [hit.id for hit in again.hits[:5]] == sorted(both, key=lambda key: -both[key])
    assert again.milliseconds.keys() == {"embed", "dense", "bm25", "rerank"}


@pytest.mark.parametrize("text", [" \n", "\u200b"])
def test_a_blank_document_is_the_last_of_those_that_are_scored_again(
    checkpoint: Path, tmp_path: Path, text: str
) -> None:
    found = made(tmp_path / "index", checkpoint, {"blank": text, "a": "red kettle", "b": "an oak bench", "c": "a pond"})
    hits = found.search(QUERY, 4, retrieve="dense", rerank=4).hits
    assert len(hits) == 4 and hits[-1].id == "blank"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_documents_come_change_and_go_without_a_rebuild(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "PART", 7)
    found = SearchIndex.create(tmp_path / "index", checkpoint, device="cpu")
    embedded: list[str] = []
    encode = found.model.encode

    def watched(texts: Any, kind: Any, **options: Any) -> Any:
        embedded.extend(texts if kind == "document" else [])
        return encode(texts, kind, **options)

    monkeypatch.setattr(found.model, "encode", watched)
    assert found.add(TEXTS) == counts(added=30)
    assert len(found) == 30 and len(embedded) == 30
    assert found.add(TEXTS) == counts(unchanged=30)
    assert len(embedded) == 30
    changed = {**TEXTS, "d3": "A purple elephant.", "new": "A yellow submarine."}
    assert found.add(changed) == counts(added=1, replaced=1, unchanged=29)
    assert embedded[30:] == ["A purple elephant.", "A yellow submarine."]
    assert len(found) == 31 and "new" in found
    assert ids(found, "purple elephant", retrieve="bm25") == ["d3"]
    assert TEXTS["d3"] not in [hit.text for hit in found.search(TEXTS["d3"], 31, retrieve="dense").hits]
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
    found = SearchIndex.create(tmp_path / "index", checkpoint, device="cpu")
    pairs = [("a", "one"), ("b", "two"), ("a", "three"), ("b", "two")]
    assert found.add(iter(pairs)) == counts(added=2, superseded=1)
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


@pytest.mark.parametrize(
    ("moment", "vectors", "ann"),
    [*((moment, "float16", "exact") for moment in range(1, 6)), *((moment, "int8", "ivf") for moment in range(2, 8))],
)
def test_a_kill_leaves_the_last_complete_state(
    moment: int, vectors: Any, ann: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second and third part, while BM25 is built, just before the new state counts, and just after.

    Then while FAISS's file is written, and between that and the others beside it.
    """
    monkeypatch.setattr(changes, "PART", 10)
    folder = tmp_path / "index"
    kinds = {"vectors": vectors, "ann": ann}
    made(folder, checkpoint, {"a": "red kettle", "d0": "An older text."}, **kinds)

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
            monkeypatch.setattr(changes, "BM25", type("Dying", (changes.BM25,), {"__init__": die}))
        if moment == 4:
            monkeypatch.setattr(changes.Store, "commit", die)
        if moment == 5:
            unlink = Path.unlink
            monkeypatch.setattr(
                Path, "unlink", lambda path, **_: die() if path.name == "building.json" else unlink(path, **_)
            )
        if moment == 6:
            monkeypatch.setattr(faiss, "write_index", lambda _, path: die(Path(path).write_bytes(b"half of it")))
        if moment == 7:
            monkeypatch.setattr(neighbours, "sync_files", die)
        found.add(TEXTS)

    assert killed(add)
    after = SearchIndex.open(folder, device="cpu")
    if moment == 5:
        assert len(after) == 31 and after._store.pending() == []
        assert after.add({"new": "a new one"}) == counts(added=1) and len(after) == 32
        return
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
    assert after.add(TEXTS) == counts(added=29, replaced=1)
    assert embedded == 30 - 10 * waiting
    whole = made(tmp_path / "whole", checkpoint, {"a": "red kettle", **TEXTS}, **kinds)
    same(after.search(QUERY, 31), whole.search(QUERY, 31))
    # Nothing of the killed call is left over.
    assert {path.name for path in (folder / "parts").iterdir()} == set(after._store.state.parts)
    assert not (folder / "building.json").exists() and len(list((folder / "bm25").iterdir())) == 1
    assert [path.name for path in folder.glob("faiss/*")] == ([] if ann == "exact" else [after._store.state.faiss])


CHANGES: dict[str, Callable[[SearchIndex], Any]] = {
    "delete": lambda index: index.delete([f"d{number}" for number in range(0, 30, 3)]),
    "keep_only": lambda index: index.keep_only([f"d{number}" for number in range(8)]),
    "ann": lambda index: SearchIndex.create(index.folder, index.model.checkpoint, ann="hnsw", device="cpu"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["building", "before", "after"])
def test_a_kill_in_any_other_change_does_so_too(
    change: str, moment: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While BM25 or FAISS's file is built, just before the new state counts, and just after, before old files go."""
    monkeypatch.setattr(changes, "PART", 10)
    folder = tmp_path / "index"
    before, wanted = made(folder, checkpoint), made(tmp_path / "wanted", checkpoint)
    CHANGES[change](wanted)
    wanted = SearchIndex.open(tmp_path / "wanted", device="cpu")

    def work() -> None:
        def die(*_: Any, **__: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "building":
            monkeypatch.setattr(changes, "build" if change == "ann" else "BM25", die)
        else:
            write = store.write_json
            monkeypatch.setattr(
                store, "write_json", lambda path, content: die(moment == "after" and write(path, content))
            )
        CHANGES[change](SearchIndex.open(folder, device="cpu"))

    assert killed(work)
    found = SearchIndex.open(folder, device="cpu")
    expected = wanted if moment == "after" else before
    assert len(found) == len(expected) and found.kind == expected.kind
    same(found.search(QUERY, 30), expected.search(QUERY, 30))
    # And the next change finds nothing in its way, and clears away what was left.
    CHANGES[change](found)
    again = SearchIndex.open(folder, device="cpu")
    again.add({"new": "a new one"})
    wanted.add({"new": "a new one"})
    same(again.search(QUERY, 31), wanted.search(QUERY, 31))
    assert {path.name for path in (folder / "parts").iterdir()} == set(again._store.state.parts)
    assert len(list((folder / "bm25").iterdir())) == 1


def test_what_another_call_had_begun_is_not_added(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    found = made(folder, checkpoint, {"a": "red kettle"})

    def broken() -> Iterator[tuple[str, str]]:
        yield from TEXTS.items()
        raise RuntimeError

    part, changes.PART = changes.PART, 10
    try:
        with pytest.raises(RuntimeError):
            found.add(broken())
        assert len(found._store.pending()) == 3
        found.add({"b": "a bench", "d1": TEXTS["d1"], "d2": "another text"})
    finally:
        changes.PART = part
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
    with pytest.raises(UserError, match="is not an index, and not empty"):
        SearchIndex.create(tmp_path, checkpoint)
    assert (tmp_path / "mine.txt").exists()
    found = made(tmp_path / "index", checkpoint, {"a": "red"})
    for wrong in ({"retrieve": "sparse"}, {"depth": 0}, {"rerank": -1}):
        with pytest.raises(ValueError):
            found.search(QUERY, **wrong)
    with pytest.raises(UserError, match="half of a surrogate pair"):
        found.add({"a\ud800": "a text"})
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


def test_small_parts_become_one_and_dead_rows_are_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SearchIndex.create(tmp_path / "index", checkpoint, device="cpu")
    for number, (key, text) in enumerate(TEXTS.items()):
        found.add({key: text})
        assert len(found._store.parts) < changes.SMALL and len(found) == number + 1
    same(found.search(QUERY, 30), made(tmp_path / "whole", checkpoint).search(QUERY, 30))
    found.keep_only(["d4"])
    assert [part.ids for part in found._store.parts.values()] == [["d4"]]
    assert ids(found) == ["d4"] and {hit.text for hit in found.search(QUERY).hits} == {TEXTS["d4"]}
    monkeypatch.setattr(changes, "PART", 6)
    found.add(TEXTS)
    assert all(len(part.ids) <= 6 for part in found._store.parts.values()) and len(found) == 30


def test_a_delete_sees_what_others_have_added_and_keeps_what_waits(checkpoint: Path, tmp_path: Path) -> None:
    first = made(tmp_path / "index", checkpoint, {"a": "red"})
    second = SearchIndex.open(tmp_path / "index", device="cpu")
    first.add({"b": "green"})
    assert second.delete(["b"]) == 1
    first.add({"b": "green"})
    assert second.keep_only(["a"]) == 1 and len(SearchIndex.open(tmp_path / "index", device="cpu")) == 1
    first.add({"b": "green"})

    def broken() -> Iterator[tuple[str, str]]:
        yield from TEXTS.items()
        raise RuntimeError

    part, changes.PART = changes.PART, 10
    try:
        with pytest.raises(RuntimeError):
            first.add(broken())
        assert second.delete(["b"]) == 1 and len(second._store.pending()) == 3
        assert first.add(TEXTS) == counts(added=30) and len(first) == 31
    finally:
        changes.PART = part


def test_what_comes_while_a_model_is_loaded(
    checkpoint: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes the index, with another model, and changes it: nothing of it is lost or mixed."""
    save_model(tiny.build(base, seed=5, noise=0.3), tmp_path / "other")
    load = UniMoER.load
    folder = tmp_path / "index"

    def slowly(model: Any, **options: Any) -> UniMoER:
        monkeypatch.setattr(UniMoER, "load", load)
        other = made(folder, tmp_path / "other", {"a": "red", "b": "green"})
        other.delete(["b"])
        return load(model, **options)

    monkeypatch.setattr(UniMoER, "load", slowly)
    with pytest.raises(UserError, match="its vectors are of another model"):
        SearchIndex.create(folder, checkpoint, device="cpu")
    monkeypatch.setattr(UniMoER, "load", slowly)
    assert ids(SearchIndex.open(folder, device="cpu")) == ["a"]


def test_a_full_disk_while_bm25_is_built_leaves_the_index_usable(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path / "index", checkpoint, {"a": "red"})

    def full(*_: Any, **__: Any) -> Any:
        raise UserError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(changes, "BM25", type("Full", (changes.BM25,), {"__init__": full}))
        with pytest.raises(UserError, match="no space"):
            found.add(TEXTS)
    assert ids(found, retrieve="dense") == ["a"]
    assert found.add(TEXTS) == counts(added=30) and len(found) == 31


def test_equal_scores_stand_by_id(checkpoint: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "index", checkpoint, {f"d{number:02}": "the same" for number in range(40)})
    for how in ("dense", "bm25", "fused"):
        assert ids(found, "the same", k=3, retrieve=how) == ["d00", "d01", "d02"]


@pytest.mark.parametrize("vectors", ["float16", "int8"])
@pytest.mark.parametrize("ann", ["exact", "ivf", "hnsw"])
def test_an_index_of_any_kind_finds_the_same(vectors: Any, ann: Any, checkpoint: Path, tmp_path: Path) -> None:
    """The corpus is so small that FAISS looks at all of it; empty texts have no vector."""
    texts = {**TEXTS, "empty": "", "blank": " "}
    plain = made(tmp_path / "plain", checkpoint, texts)
    found = made(tmp_path / "index", checkpoint, texts, vectors=vectors, ann=ann)
    assert found.kind == f"{vectors} vectors, {'exact' if ann == 'exact' else f'FAISS {ann.upper()}'} search"
    for index in (found, SearchIndex.open(tmp_path / "index", device="cpu")):
        expected = {hit.id: hit.retrieval for hit in plain.search(QUERY, 40, retrieve="dense").hits}
        for exact in (False, True):
            hits = index.search(QUERY, 40, retrieve="dense", exact=exact).hits
            assert {hit.id: hit.retrieval for hit in hits} == pytest.approx(expected, abs=0.01)
        assert {hit.id for hit in index.search(QUERY, 5).hits} == {hit.id for hit in plain.search(QUERY, 5).hits}
    assert found.delete(["d1", "empty"]) == 2 and found.add({"d2": "A purple elephant."}) == counts(replaced=1)
    assert len(ids(found, k=40, retrieve="dense")) == 30 and "d1" not in ids(found, k=40)
    assert ids(found, "purple elephant", k=1, retrieve="bm25") == ["d2"]


def test_how_it_is_searched_may_change_and_what_it_keeps_may_not(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, checkpoint, vectors="int8")
    for ann, how in (("hnsw", "FAISS HNSW"), ("exact", "exact"), ("ivf", "FAISS IVF"), (None, "FAISS IVF")):
        found = SearchIndex.create(folder, checkpoint, ann=ann, device="cpu")  # type: ignore[arg-type]
        assert found.kind == f"int8 vectors, {how} search" and len(found) == 30
    with pytest.raises(UserError, match="keeps its vectors as int8; make another index"):
        SearchIndex.create(folder, checkpoint, vectors="float16", device="cpu")
    with pytest.raises(ValueError, match="vectors: 'int4'; did you mean 'int8'"):
        SearchIndex.create(folder, checkpoint, vectors="int4", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ann: 'flat'; choose from auto, exact, hnsw, ivf"):
        SearchIndex.create(folder, checkpoint, ann="flat", device="cpu")  # type: ignore[arg-type]


def test_settings_that_no_vector_depends_on_do_not_count(base: Path, tmp_path: Path) -> None:
    save_model(tiny.build(base, noise=0.3), tmp_path / "one")
    one = UniMoER.load(tmp_path / "one", device="cpu")
    before = identity(one)
    one.model.config = one.model.config.model_copy(update={"gradient_checkpointing": True})
    assert identity(one) == before
    prompts = one.model.config.prompts.model_copy(update={"max_document_tokens": 31})
    one.model.config = one.model.config.model_copy(update={"prompts": prompts})
    assert identity(one) != before


def test_a_model_of_another_router_is_another(base: Path, tmp_path: Path) -> None:
    """With the same weights: neither of these has any."""
    found = set()
    for router in ("hard", "uniform"):
        adapter = {"rank": 4, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": router}}
        save_model(tiny.build(base, adapter=adapter, noise=0.3), tmp_path / router)
        found.add(identity(UniMoER.load(tmp_path / router, device="cpu")))
    first, second = ((tmp_path / router / "adapter.safetensors").read_bytes() for router in ("hard", "uniform"))
    assert first == second and len(found) == 2


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: (folder / "index.json").write_text('{"format": 1, "model": "x"}'),
        lambda folder: (folder / "index.json").write_text(""),
        lambda folder: next(folder.glob("parts/*/vectors.npy")).write_bytes(b"x"),
        lambda folder: next(folder.glob("parts/*/vectors.npy")).write_bytes(b""),
        lambda folder: next(folder.glob("parts/*/ids.json")).unlink(),
        lambda folder: next(folder.glob("parts/*/scales.npy")).unlink(),
        lambda folder: shutil.rmtree(next(folder.glob("bm25/*"))),
        lambda folder: shutil.rmtree(next(folder.glob("faiss/*"))),
    ],
)
def test_a_damaged_index_is_one_line(break_it: Callable[[Path], Any], checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, checkpoint, {"a": "red"}, vectors="int8", ann="ivf")
    break_it(folder)
    with pytest.raises(UserError) as caught:
        SearchIndex.open(folder, model=checkpoint, device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
