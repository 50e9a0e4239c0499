"""Qdrant: documents in a collection of your own server or folder, searched and reranked by one model; extra `qdrant`.

    from qdrant_client import QdrantClient
    from unimoer import UniMoER
    from unimoer.integrations.qdrant import QdrantSearch

    found = QdrantSearch(UniMoER.load("smollm2-135m-search"), QdrantClient("http://localhost:6333"), "articles")
    found.add({"a": "The red kettle.", "b": "A bench."}, payloads={"a": {"year": 2024}})
    for hit in found.search("kettle", 10, rerank=10).hits: print(hit.id, hit.score, hit.payload)

A point's id is a UUID made of the document's id. Its payload is what you give, and under `unimoer` the id, the text and
a hash of the text. The collection's metadata say which model its vectors are of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from unimoer.errors import UserError
from unimoer.library import UniMoER
from unimoer.library.hits import Hit, Hits, timed
from unimoer.library.identity import identity, name_of, text_hash
from unimoer.types import Task

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise ImportError("qdrant-client is not installed; pip install 'unimoer[qdrant]', or qdrant-client") from error

OWN = "unimoer"
"""The key, in payloads and in the collection's metadata, of what is not the user's."""
BATCH = 256
"""Documents that are embedded and sent together; a server takes requests of 32 MB."""
CHARACTERS = 1 << 22
"""Of a batch's texts."""
DISTANCES = (models.Distance.DOT, models.Distance.COSINE)


@dataclass(frozen=True, slots=True)
class PayloadHit(Hit):
    payload: Mapping[str, Any] = field(default_factory=dict)
    """What was given with the document."""


class QdrantSearch:
    """Documents of one collection, under the ids that you give them.

    A collection that is not there is made, for the dot product of unit vectors, which is their cosine. An empty one is
    taken as you have made it, with quantisation or shards, if it has one unnamed vector a point.
    """

    def __init__(self, model: UniMoER, client: QdrantClient, collection: str) -> None:
        """
        Raises:
            UserError: the model cannot embed; the collection is of another model, dimension or distance, or of points
                that name no model; or the server keeps no metadata.
        """
        if Task.EMBEDDING not in model.tasks:
            raise UserError(f"{model.checkpoint}: was not trained to embed, so there is nothing to search with")
        self.model, self.client, self.collection = model, client, collection
        own = {"model": name_of(model.checkpoint), "identity": identity(model)}
        if not client.collection_exists(collection):
            kept = models.VectorParams(size=model.dimension, distance=models.Distance.DOT)
            client.create_collection(collection, vectors_config=kept, metadata={OWN: own})
        self._check_vectors()
        if self._about() is None:
            if len(self):
                raise UserError(f"{collection}: has points that name no model; choose another collection")
            client.update_collection(collection, metadata={OWN: own})
        there = self._about()
        if there is None:
            raise UserError(f"{collection}: the server keeps no metadata of collections; Qdrant 1.16 does")
        if there["identity"] != own["identity"]:
            raise UserError(
                f"{collection}: its vectors are of another model: {there['model']} ({there['identity']}), not of "
                f"{own['model']} ({own['identity']}); choose another collection"
            )

    def __len__(self) -> int:
        return self.client.count(self.collection, exact=True).count

    def add(
        self,
        documents: Mapping[str, str] | Iterable[tuple[str, str]],
        payloads: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, int]:
        """Add documents, id -> text, and replace those whose text has changed; what is the same is not embedded again.

        A document that `payloads` names has that payload afterwards; another one keeps what it has. Documents go out a
        batch at a time and are found at once, and a call that was stopped is finished by the same call. Returns how
        many were `added`, `replaced` and `unchanged`; of an id that comes twice the later text counts.

        Raises:
            UserError: an empty id, or a payload with the key `unimoer`.
        """
        counts = {"added": 0, "replaced": 0, "unchanged": 0}
        for batch in _batches(documents.items() if isinstance(documents, Mapping) else documents):
            stored = self._stored(batch)
            wanted = {key: _payload(key, text, stored.get(key, {}), payloads or {}) for key, text in batch.items()}
            changed = [key for key in batch if stored.get(key, {OWN: {}})[OWN].get("hash") != wanted[key][OWN]["hash"]]
            counts["added"] += len(batch) - len(stored)
            counts["replaced"] += len(changed) - (len(batch) - len(stored))
            counts["unchanged"] += len(batch) - len(changed)
            if changed:
                vectors = self.model.encode([batch[key] for key in changed], "document").tolist()
                pairs = zip(changed, vectors, strict=True)
                points = [models.PointStruct(id=point_id(key), vector=own, payload=wanted[key]) for key, own in pairs]
                self.client.upsert(self.collection, points)
            relabelled = [key for key in batch.keys() - set(changed) if _given(wanted[key]) != _given(stored[key])]
            if relabelled:
                payload = [models.SetPayload(payload=wanted[key], points=[point_id(key)]) for key in relabelled]
                operations = [models.OverwritePayloadOperation(overwrite_payload=one) for one in payload]
                self.client.batch_update_points(self.collection, operations)
        return counts

    def delete(self, ids: Iterable[str]) -> int:
        """Take documents out; returns how many of them there were."""
        found = 0
        named = iter(dict.fromkeys(ids))
        while batch := [point_id(key) for key in islice(named, BATCH)]:
            there = [record.id for record in self.client.retrieve(self.collection, batch, with_payload=False)]
            if there:
                self.client.delete(self.collection, there)
            found += len(there)
        return found

    def search(
        self, query: str, k: int = 10, *, filter: models.Filter | None = None, rerank: int = 0
    ) -> Hits[PayloadHit]:
        """The k best documents of a query, among those that a filter lets through.

        With `rerank`, so many of the best are scored again with the query beside them, and stand in the order of the
        score head; the rest follows.

        Raises:
            UserError: the model was not trained to rerank.
            ValueError: a number that is not positive.
        """
        if k < 1 or rerank < 0:
            raise ValueError(f"k: {k}, rerank: {rerank}; must be positive")
        took: dict[str, float] = {}
        if not query.strip():
            return Hits([], took)
        with timed(took, "embed"):
            vector = self.model.encode([query], "query")[0].tolist()
        with timed(took, "dense"):
            found = self.client.query_points(self.collection, vector, query_filter=filter, limit=max(k, rerank)).points
        hits = []
        for point in sorted(found, key=lambda point: -point.score):
            payload = point.payload or {}
            own = payload[OWN]
            hits.append(PayloadHit(own["id"], point.score, own["text"], point.score, payload=_given(payload)))
        if rerank and hits:
            with timed(took, "rerank"):
                hits = self._reranked(query, hits[:rerank], hits[rerank:])
        return Hits(hits[:k], took)

    def _reranked(self, query: str, top: list[PayloadHit], rest: list[PayloadHit]) -> list[PayloadHit]:
        ranked = self.model.rerank(query, [hit.text for hit in top])
        best = [replace(top[one.index], score=one.score, reranking=one.score) for one in ranked]
        # Those that were not scored again lie below those that were, as far apart as they were.
        lower = best[-1].score - rest[0].score if rest else 0.0
        return best + [replace(hit, score=hit.score + lower) for hit in rest]

    def _stored(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Payloads of those that are there, without their texts."""
        parts = models.PayloadSelectorExclude(exclude=[f"{OWN}.text"])
        found = self.client.retrieve(self.collection, [point_id(key) for key in ids], with_payload=parts)
        return {record.payload[OWN]["id"]: record.payload for record in found if record.payload}

    def _about(self) -> dict[str, str] | None:
        metadata = self.client.get_collection(self.collection).config.metadata or {}
        found: dict[str, str] | None = metadata.get(OWN)
        return found

    def _check_vectors(self) -> None:
        kept = self.client.get_collection(self.collection).config.params.vectors
        if not isinstance(kept, models.VectorParams) or kept.multivector_config is not None:
            raise UserError(f"{self.collection}: does not have one unnamed vector a point; choose another collection")
        if kept.size != self.model.dimension or kept.distance not in DISTANCES:
            raise UserError(
                f"{self.collection}: has vectors of {kept.size} numbers with distance {kept.distance.value}, the model "
                f"{self.model.dimension} with Dot or Cosine; choose another collection"
            )


def point_id(key: str) -> str:
    """Of a document: the same in every collection."""
    return str(uuid5(NAMESPACE_URL, f"unimoer:{key}"))


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    batch: dict[str, str] = {}
    size = 0
    for key, text in documents:
        if not key:
            raise UserError("a document has an empty id")
        batch[key] = text
        size += len(text)
        if len(batch) == BATCH or size >= CHARACTERS:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _payload(
    key: str, text: str, stored: Mapping[str, Any], payloads: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All of a point's payload."""
    given = payloads.get(key)
    if given is not None and OWN in given:
        raise UserError(f"{key}: its payload has the key '{OWN}', which is kept for what belongs to the document")
    own = {"id": key, "text": text, "hash": text_hash(text)}
    return {**(_given(stored) if given is None else given), OWN: own}


def _given(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own part of a payload."""
    return {key: value for key, value in payload.items() if key != OWN}
