"""FAISS beside the parts of an index: what it finds, what it never shows, and when it is built again."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unimoer.errors import UserError
from unimoer.search import neighbours
from unimoer.search.changes import apply, choose
from unimoer.search.dense import Dense
from unimoer.search.neighbours import Ann
from unimoer.search.store import Part, State, Store
from unimoer.search.vectors import VECTORS, Precision

WIDTH = 32
GENERATOR = np.random.default_rng(3)
CENTRES = GENERATOR.standard_normal((60, WIDTH), dtype=np.float32)
APPROXIMATE: tuple[Ann, ...] = ("ivf", "hnsw")


def drawn(count: int) -> np.ndarray:
    """Unit vectors in clusters."""
    found = CENTRES[GENERATOR.integers(len(CENTRES), size=count)] + GENERATOR.standard_normal((count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def written(store: Store, keys: Sequence[str], vectors: np.ndarray | None = None) -> Part:
    return store.write({key: f"text {key}" for key in keys}, drawn(len(keys)) if vectors is None else vectors)


def made(folder: Path, count: int = 3000, *, ann: Ann = "exact", precision: Precision = "float16") -> Store:
    """Documents d0, d1, ... in three parts."""
    store = Store(folder, State("drawn", "at random", ann=ann, vectors=precision))
    store.commit(store.state, finished=True)
    parts = [written(store, [f"d{number}" for number in range(count)][start::3]) for start in range(3)]
    return apply(store, parts, {part.folder.name: [] for part in parts}, set(), finished=True)


def added(store: Store, keys: Sequence[str], vectors: np.ndarray | None = None) -> Store:
    part = written(store, keys, vectors)
    return apply(store, [part], {part.folder.name: []}, set(), finished=True)


def structures(store: Store) -> list[str]:
    return [path.name for path in (store.folder / "faiss").glob("*")]


@pytest.mark.parametrize("precision", VECTORS)
@pytest.mark.parametrize("ann", APPROXIMATE)
def test_it_finds_what_an_exact_search_finds(ann: Ann, precision: Precision, tmp_path: Path) -> None:
    store = choose(made(tmp_path, precision=precision), ann)
    dense = Dense(store)
    assert dense.kind == ann and structures(store) == [store.state.faiss]
    shared = []
    for query in drawn(50):
        exact, found = dense.search(query, 20, exact=True), dense.search(query, 20)
        assert len(found) == 20 and list(found.values()) == sorted(found.values(), reverse=True)
        same = found.keys() & exact.keys()
        shared.append(len(same) / 20)
        # Scores are of the part's own vectors, not of FAISS's codes.
        np.testing.assert_allclose([found[key] for key in same], [exact[key] for key in same], atol=1e-6)
    assert np.mean(shared) > 0.97


@pytest.mark.parametrize("ann", APPROXIMATE)
def test_dead_rows_never_come_and_as_many_living_ones_as_asked_for_do(
    ann: Ann, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was built for 3000 documents 60 are left, and it is not built again."""
    monkeypatch.setattr(neighbours, "STALE", 10)
    # Fewer clusters than hold so many living ones: it has to notice.
    monkeypatch.setattr(neighbours, "PROBES", 1)
    store = choose(made(tmp_path), ann)
    built = store.state.faiss
    living = {f"d{number}" for number in range(0, 3000, 50)}
    # Dead by replacement too, and a whole part that is gone.
    gone = {f"d{number}" for number in range(3000)} - living
    store = apply(store, [], {}, gone, finished=True)
    assert store.state.faiss == built
    dense = Dense(store)
    for k in (1, 10, 59, 60, 500):
        for query in drawn(10):
            found = dense.search(query, k)
            assert len(found) == min(k, 60) and found.keys() <= living
    monkeypatch.undo()
    assert apply(store, [], {}, {"d0"}, finished=True).state.faiss != built


@pytest.mark.parametrize("ann", APPROXIMATE)
def test_what_has_come_since_is_found_beside_it(ann: Ann, tmp_path: Path) -> None:
    store = choose(made(tmp_path), ann)
    built = store.state.faiss
    query = drawn(1)
    store = added(store, ["new", "d5"], np.concatenate([query, drawn(1)]))
    assert store.state.faiss == built and Dense(store).search(query[0], 1).keys() == {"new"}
    # Replaced: the older row of d5 is dead.
    old = {name: rows for name, rows in store.state.parts.items() if rows}
    assert sum(map(len, old.values())) == 1
    everything = Dense(store).search(query[0], 5000)
    assert len(everything) == 3001
    store = apply(store, [], {}, {"new"}, finished=True)
    assert "new" not in Dense(store).search(query[0], 10) and store.state.faiss == built


def test_it_is_built_again_once_a_tenth_is_dead_or_missing(tmp_path: Path) -> None:
    store = choose(made(tmp_path), "ivf")
    built = store.state.faiss
    store = added(store, [f"n{number}" for number in range(200)])
    store = apply(store, [], {}, {f"d{number}" for number in range(100)}, finished=True)
    assert store.state.faiss == built
    store = apply(store, [], {}, {"d100"}, finished=True)
    assert store.state.faiss != built and structures(store) == [store.state.faiss]
    assert store.neighbours is not None and set(store.neighbours.parts) == set(store.state.parts)


def test_parts_that_become_one_are_searched_exactly_until_then(tmp_path: Path) -> None:
    store = choose(made(tmp_path), "ivf")
    built = store.state.faiss
    for number in range(12):
        store = added(store, [f"n{number}"])
    assert len(store.parts) < 8 and store.state.faiss != built
    vectors = {
        key: part.vectors[np.array([row])][0] for part in store.parts.values() for row, key in enumerate(part.ids)
    }
    assert len(vectors) == 3012
    for key in ("n0", "n11", "d7"):
        assert Dense(store).search(vectors[key], 1).keys() == {key}


def test_auto_takes_it_where_it_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "LARGE", 3001)
    store = made(tmp_path, ann="auto")
    assert Dense(store).kind == "exact" and structures(store) == []
    store = added(store, ["one more"])
    assert Dense(store).kind == "ivf" and len(structures(store)) == 1
    store = apply(store, [], {}, {"d0"}, finished=True)
    assert Dense(store).kind == "exact" and structures(store) == []
    assert choose(store, "hnsw").neighbours is not None and structures(choose(store, "exact")) == []


def test_an_index_of_nothing_has_none(tmp_path: Path) -> None:
    store = choose(made(tmp_path, count=3), "ivf")
    assert len(Dense(store).search(drawn(1)[0], 5)) == 3
    store = apply(store, [], {}, {"d0", "d1", "d2"}, finished=True)
    assert store.state.faiss is None and Dense(store).search(drawn(1)[0], 5) == {}
    assert len(Dense(added(store, ["a"])).search(drawn(1)[0], 5)) == 1


def test_a_reader_keeps_what_it_has_opened(tmp_path: Path) -> None:
    store = choose(made(tmp_path), "hnsw")
    for ann in ("ivf", "hnsw", "exact"):
        reader, query = Dense(Store.open(tmp_path)), drawn(1)[0]
        before = reader.search(query, 10)
        store = choose(store, ann)
        assert reader.search(query, 10) == before


def test_without_faiss_auto_is_exact_and_the_rest_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "LARGE", 100)
    store = made(tmp_path / "auto", ann="auto")
    other = choose(made(tmp_path / "ivf"), "ivf")
    assert Dense(store).kind == "ivf"
    monkeypatch.setitem(sys.modules, "faiss", None)
    query = drawn(1)[0]
    store, other = Store.open(store.folder), Store.open(other.folder)
    assert Dense(store).kind == "exact" and Dense(store).search(query, 5) == Dense(store).search(query, 5, exact=True)
    with pytest.raises(UserError, match=r"FAISS is not installed; pip install 'unimoer\[faiss\]'"):
        Dense(other).search(query, 5)
    with pytest.raises(UserError, match="FAISS is not installed"):
        added(other, ["a"])
    assert len(Dense(other).search(query, 5, exact=True)) == 5
    # What it would not be able to keep up is cleared away, and made again by who can.
    store = added(store, ["a"])
    assert store.state.faiss is None and structures(store) == []
    assert Dense(choose(other, "exact")).search(query, 5) == Dense(other).search(query, 5, exact=True)
    monkeypatch.undo()
    monkeypatch.setattr(neighbours, "LARGE", 100)
    assert Dense(added(store, ["b"])).kind == "ivf"


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """As a full disk: what is written beyond it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ann", APPROXIMATE)
def test_a_full_disk_leaves_the_index_as_it_was(ann: Ann, tmp_path: Path) -> None:
    store = made(tmp_path)
    with no_file_over(20_000), pytest.raises(UserError, match=r"cannot be written: index\.faiss.*free space") as caught:
        choose(store, ann)
    assert "\n" not in str(caught.value) and structures(store) == []
    assert Store.open(tmp_path).state == store.state
    assert Dense(choose(store, ann)).kind == ann


@pytest.mark.parametrize("ann", APPROXIMATE)
@pytest.mark.parametrize("name", ["index.faiss", "rows.npy", "about.json"])
@pytest.mark.parametrize("content", [b"", b"x", None])
def test_a_damaged_one_is_one_line(ann: Ann, name: str, content: bytes | None, tmp_path: Path) -> None:
    store = choose(made(tmp_path), ann)
    path = tmp_path / "faiss" / str(store.state.faiss) / name
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half if content is None else content)
    with pytest.raises(UserError, match="a damaged index") as caught:
        Store.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_first_format_is_read_and_leaves_as_the_second(tmp_path: Path) -> None:
    from unimoer.files import read_json, write_json

    store = made(tmp_path)
    query = drawn(1)[0]
    before = Dense(store).search(query, 20)
    content = read_json(tmp_path / "index.json")
    older = {key: content[key] for key in ("model", "identity", "split_identifiers", "parts", "bm25")}
    write_json(tmp_path / "index.json", {"format": 1, **older})
    found = Store.open(tmp_path)
    assert found.state == replace(store.state, ann="auto") and Dense(found).search(query, 20) == before
    added(found, ["a"])
    assert read_json(tmp_path / "index.json")["format"] == 2
