"""A collection of a real client in local mode: what goes in, what comes out, and which collections are refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

import tiny
from unimoer import UniMoER
from unimoer.errors import UserError
from unimoer.integrations import qdrant
from unimoer.integrations.qdrant import QdrantSearch, point_id
from unimoer.model.checkpoint import save_model
from unimoer.types import Task

QUERY = "find my red kettle"
TEXTS = {key: document.content for key, document in tiny.dataset("kitchen").corpus.items()}
COLOURS = {key: {"colour": text.split()[0], "words": len(text.split())} for key, text in TEXTS.items()}
Config = models.VectorParams
RED = models.Filter(must=[models.FieldCondition(key="colour", match=models.MatchValue(value="red"))])


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> UniMoER:
    folder = tmp_path_factory.mktemp("qdrant") / "checkpoint"
    save_model(tiny.build(base, noise=0.3), folder)
    return UniMoER.load(folder, device="cpu")


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def embedded(model: UniMoER, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that the model embeds as a document, as it does."""
    seen: list[str] = []
    encode = model.encode

    def watched(texts: Any, kind: Any, **options: Any) -> Any:
        seen.extend(texts if kind == "document" else [])
        return encode(texts, kind, **options)

    monkeypatch.setattr(model, "encode", watched)
    return seen


def counts(**some: int) -> dict[str, int]:
    return {"added": 0, "replaced": 0, "unchanged": 0} | some


def points(client: QdrantClient, name: str = "texts") -> dict[str, models.Record]:
    found, _ = client.scroll(name, limit=1000, with_vectors=True)
    return {record.payload["unimoer"]["id"]: record for record in found if record.payload}


def test_vectors_and_payloads_are_what_was_given(
    model: UniMoER, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant, "BATCH", 7)
    found = QdrantSearch(model, client, "texts")
    assert found.add(iter(TEXTS.items()), COLOURS) == counts(added=30) and len(found) == 30
    stored = points(client)
    vectors = np.array([stored[key].vector for key in TEXTS])
    np.testing.assert_allclose(vectors, model.encode(list(TEXTS.values()), "document"), atol=1e-5)
    for key, text in TEXTS.items():
        payload = dict(stored[key].payload or {})
        own = payload.pop("unimoer")
        assert payload == COLOURS[key] and own["text"] == text and str(stored[key].id) == point_id(key)


def test_the_nearest_come_first_and_a_filter_holds(model: UniMoER, client: QdrantClient) -> None:
    found = QdrantSearch(model, client, "texts")
    found.add(TEXTS, COLOURS)
    cosines = dict(
        zip(TEXTS, model.encode(list(TEXTS.values()), "document") @ model.encode([QUERY], "query")[0], strict=True)
    )
    hits = found.search(QUERY, 30)
    assert [hit.id for hit in hits.hits] == sorted(cosines, key=lambda key: -cosines[key])
    for hit in hits.hits:
        assert hit.score == hit.retrieval == pytest.approx(cosines[hit.id], abs=1e-5) and hit.reranking is None
        assert hit.text == TEXTS[hit.id] and hit.payload == COLOURS[hit.id]
    assert hits.milliseconds.keys() == {"embed", "dense"}
    red = found.search(QUERY, 30, filter=RED).hits
    assert {hit.id for hit in red} == {key for key in TEXTS if COLOURS[key]["colour"] == "red"}
    assert len(found.search(QUERY, 3).hits) == 3 and found.search(" \n").hits == []
    for wrong in ({"k": 0}, {"rerank": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            found.search(QUERY, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [3, 12])
def test_the_best_stand_as_the_model_reranks_them(k: int, model: UniMoER, client: QdrantClient) -> None:
    found = QdrantSearch(model, client, "texts")
    found.add(TEXTS, COLOURS)
    plain, again = found.search(QUERY, 12).hits, found.search(QUERY, k, rerank=8)
    expected = model.rerank(QUERY, [hit.text for hit in plain[:8]])
    order = [plain[one.index].id for one in expected] + [hit.id for hit in plain[8:]]
    assert [hit.id for hit in again.hits] == order[:k] != [hit.id for hit in plain[:k]]
    for hit, one in zip(again.hits, expected, strict=False):
        assert hit.score == hit.reranking == one.score and hit.payload == COLOURS[hit.id]
    assert [hit.reranking for hit in again.hits[8:]] == [None] * max(0, k - 8)
    assert [hit.score for hit in again.hits] == sorted((hit.score for hit in again.hits), reverse=True)
    assert again.milliseconds.keys() == {"embed", "dense", "rerank"}


def test_documents_are_replaced_relabelled_and_deleted(
    model: UniMoER, client: QdrantClient, embedded: list[str]
) -> None:
    found = QdrantSearch(model, client, "texts")
    found.add(TEXTS, COLOURS)
    assert found.add(TEXTS) == counts(unchanged=30) and len(embedded) == 30
    # Another text keeps its payload; another payload needs no vector; an empty one takes away what there was.
    changed = found.add({**TEXTS, "d3": "A purple elephant."}, {"d4": {"colour": "grey"}, "d5": {}})
    assert changed == counts(replaced=1, unchanged=29) and embedded[30:] == ["A purple elephant."]
    hits = {hit.id: hit for hit in found.search(QUERY, 30).hits}
    assert hits["d3"].text == "A purple elephant." and hits["d3"].payload == COLOURS["d3"]
    assert hits["d4"].text == TEXTS["d4"] and hits["d4"].payload == {"colour": "grey"} and hits["d5"].payload == {}
    assert hits["d6"].payload == COLOURS["d6"]
    vector = model.encode(["A purple elephant."], "document")[0]
    np.testing.assert_allclose(points(client)["d3"].vector, vector, atol=1e-5)
    assert found.delete(["d3", "d3", "unknown", "d4"]) == 2 and found.delete([]) == 0
    assert len(found) == 28 and {"d3", "d4"}.isdisjoint(hit.id for hit in found.search(QUERY, 40).hits)
    assert found.add({"d3": TEXTS["d3"]}) == counts(added=1) and points(client)["d3"].payload.keys() == {"unimoer"}  # type: ignore[union-attr]


def test_the_later_of_two_texts_counts(model: UniMoER, client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("a", "one"), ("b", "two"), ("a", "three"), ("c", "four"), ("c", "five")]
    found = QdrantSearch(model, client, "texts")
    assert found.add(pairs) == counts(added=3)
    assert {hit.id: hit.text for hit in found.search("one").hits} == {"a": "three", "b": "two", "c": "five"}
    monkeypatch.setattr(qdrant, "BATCH", 1)
    assert found.add(pairs) == counts(replaced=4, unchanged=1)
    assert {hit.id: hit.text for hit in found.search("one").hits} == {"a": "three", "b": "two", "c": "five"}


def test_batches_end_at_so_many_characters(
    model: UniMoER, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    upsert = client.upsert
    monkeypatch.setattr(client, "upsert", lambda name, points: (sent.append(len(points)), upsert(name, points)))
    monkeypatch.setattr(qdrant, "CHARACTERS", 10)
    QdrantSearch(model, client, "texts").add({"a": "x" * 30, "b": "y" * 4, "c": "y" * 4, "d": "y" * 4, "e": ""})
    assert sent == [1, 3, 1]


@pytest.mark.parametrize("distance", [models.Distance.DOT, models.Distance.COSINE])
def test_an_empty_text_has_a_vector_that_is_near_nothing(
    distance: models.Distance, model: UniMoER, client: QdrantClient
) -> None:
    client.create_collection("texts", vectors_config=Config(size=model.dimension, distance=distance))
    found = QdrantSearch(model, client, "texts")
    texts = {"empty": "", "kettle": TEXTS["d0"], "control": "<|im_end|>"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.add(texts)
        hits = {hit.id: hit for hit in found.search(QUERY).hits}
        assert {key: hit.text for key, hit in hits.items()} == texts
        assert hits["empty"].score == hits["control"].score == 0 and np.isfinite(hits["kettle"].score)
        assert [hit.score for hit in found.search("<|im_end|>").hits] == [0, 0, 0]


def test_a_folder_is_opened_again_by_the_same_model_alone(
    model: UniMoER, base: Path, tmp_path: Path, embedded: list[str]
) -> None:
    save_model(tiny.build(base, seed=5, noise=0.3), tmp_path / "other")
    for expected in (counts(added=30), counts(unchanged=30)):
        client = QdrantClient(path=str(tmp_path / "folder"))
        assert QdrantSearch(model, client, "texts").add(TEXTS) == expected and len(embedded) == 30
        with pytest.raises(UserError, match=r"^texts: its vectors are of another model: .*checkpoint") as caught:
            QdrantSearch(UniMoER.load(tmp_path / "other", device="cpu"), client, "texts")
        assert "\n" not in str(caught.value)
        client.close()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda size: Config(size=size + 1, distance=models.Distance.DOT),
            "has vectors of 33 numbers with distance Dot",
        ),
        (lambda size: Config(size=size, distance=models.Distance.EUCLID), "numbers with distance Euclid, the model 32"),
        (lambda size: {"text": Config(size=size, distance=models.Distance.DOT)}, "does not have one unnamed vector"),
    ],
)
def test_collections_of_something_else_are_refused(
    make: Callable[[int], Any], line: str, model: UniMoER, client: QdrantClient
) -> None:
    client.create_collection("texts", vectors_config=make(model.dimension))
    with pytest.raises(UserError, match=line):
        QdrantSearch(model, client, "texts")
    assert client.get_collection("texts").config.metadata is None


def test_only_an_empty_collection_of_yours_is_taken(model: UniMoER, client: QdrantClient) -> None:
    for name in ("full", "empty"):
        kept = Config(size=model.dimension, distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=kept, metadata={"mine": 1})
    client.upsert("full", [models.PointStruct(id=1, vector=[0.1] * model.dimension)])
    with pytest.raises(UserError, match="full: has points that name no model; choose another collection"):
        QdrantSearch(model, client, "full")
    assert QdrantSearch(model, client, "empty").add(TEXTS) == counts(added=30)
    metadata = client.get_collection("empty").config.metadata
    assert metadata is not None and metadata.keys() == {"mine", "unimoer"}
    assert len(QdrantSearch(model, client, "empty")) == 30


def test_a_server_without_metadata_is_refused(
    model: UniMoER, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older one drops what it does not know."""
    create, update = client.create_collection, client.update_collection
    monkeypatch.setattr(client, "create_collection", lambda *names, metadata, **others: create(*names, **others))
    monkeypatch.setattr(client, "update_collection", lambda *names, metadata: update(*names))
    with pytest.raises(UserError, match="the server keeps no metadata of collections"):
        QdrantSearch(model, client, "texts")


def test_what_cannot_be_stored_is_one_line(model: UniMoER, client: QdrantClient) -> None:
    found = QdrantSearch(model, client, "texts")
    with pytest.raises(UserError, match="a document has an empty id"):
        found.add({"": "x"})
    with pytest.raises(UserError, match="a: its payload has the key 'unimoer'"):
        found.add({"a": "x"}, {"a": {"unimoer": 1}})
    assert len(found) == 0


def test_a_model_that_only_reranks_is_refused(model: UniMoER, client: QdrantClient) -> None:
    other = UniMoER(model.model, model.checkpoint, [Task.RERANKING])
    with pytest.raises(UserError, match="was not trained to embed"):
        QdrantSearch(other, client, "texts")
    assert not client.collection_exists("texts")


def test_without_the_client_the_extra_is_named() -> None:
    code = "import sys; sys.modules['qdrant_client'] = None; import unimoer.integrations.qdrant"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "qdrant-client is not installed; pip install 'unimoer[qdrant]'" in done.stderr
