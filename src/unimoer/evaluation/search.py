"""The embedding task: exact search over the whole corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from unimoer.assets import cache_dir
from unimoer.data.corpus import LARGE, Contents
from unimoer.model.inference import Report, encode, encode_to, identify
from unimoer.model.unified import UnifiedModel
from unimoer.types import RetrievalDataset, Run

CHUNK = 65_536
"""Documents scored at a time: a query chunk against all of MS MARCO would not fit in memory."""
SCORES = 1 << 24
"""Scores in memory at a time, which limits the queries of a chunk."""


def top_k(
    queries: np.ndarray, documents: np.ndarray, query_ids: Sequence[str], document_ids: Sequence[str], k: int
) -> dict[str, dict[str, float]]:
    """The k nearest documents of each query by inner product, exactly; `[Q, d]`, `[N, d]`.

    Documents are read in blocks, once each, and may be a memory-mapped file in half precision.
    """
    rows = max(1, SCORES // max(1, min(CHUNK, len(documents))))
    spans = [slice(start, start + rows) for start in range(0, len(query_ids), rows)]
    best = [np.empty((len(queries[span]), 0), dtype=np.float32) for span in spans]
    where = [np.empty((len(queries[span]), 0), dtype=np.int64) for span in spans]
    for start in range(0, len(document_ids), CHUNK):
        block = np.asarray(documents[start : start + CHUNK], dtype=np.float32)
        for number, span in enumerate(spans):
            scores = np.concatenate([best[number], queries[span] @ block.T], axis=1)
            before = where[number].shape[1]
            keep = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
            if scores.shape[1] > k:
                keep = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            old = np.take_along_axis(where[number], np.minimum(keep, before - 1), 1) if before else keep
            where[number] = np.where(keep < before, old, keep - before + start)
            best[number] = np.take_along_axis(scores, keep, 1)
    found = zip(np.concatenate(best), np.concatenate(where), strict=True) if spans else ()
    return {
        query: {document_ids[place]: score for score, place in zip(scores.tolist(), places.tolist(), strict=True)}
        for query, (scores, places) in zip(query_ids, found, strict=True)
    }


def search(
    model: UnifiedModel,
    dataset: RetrievalDataset,
    queries: Mapping[str, str],
    *,
    k: int = 100,
    instruction: str | None = None,
    batch_tokens: int = 8192,
    report: Report | None = None,
    vectors: Path | None = None,
) -> Run:
    """Embed the corpus and the queries, and rank every document for every query.

    With `vectors`, the documents' vectors are written to that `.npy` file, and read from it the next time. A large
    corpus is never encoded in memory: without `vectors` its own go to the cache folder, where a search that was killed
    finds them and one that has ended leaves none.

    Raises:
        UserError: `vectors` holds those of another model, corpus or instruction, or the disk is too small.
    """
    query_ids, document_ids = list(queries), list(dataset.corpus)
    tokenise = partial(model.prompter.documents, instruction=instruction)
    texts = Contents(dataset.corpus, document_ids)
    with _kept(model, dataset, document_ids, instruction, vectors) as (path, identity):
        documents = (
            encode(model, tokenise(texts[:]), batch_tokens=batch_tokens, report=report)
            if path is None
            else encode_to(path, model, texts, tokenise, identity=identity, batch_tokens=batch_tokens, report=report)
        )
        encoded = encode(model, model.prompter.queries(list(queries.values()), instruction), batch_tokens=batch_tokens)
        return top_k(encoded, documents, query_ids, document_ids, k)


@contextmanager
def _kept(
    model: UnifiedModel,
    dataset: RetrievalDataset,
    document_ids: Sequence[str],
    instruction: str | None,
    vectors: Path | None,
) -> Iterator[tuple[Path | None, str]]:
    """Where the vectors of documents are kept, None for in memory, and the identity of their content."""
    if vectors is None and len(document_ids) < LARGE:
        yield None, ""
        return
    order = hashlib.sha256()
    for key in document_ids:
        order.update(f"{key}\0".encode())
    identity = identify(model, dataset.fingerprint, order.hexdigest(), repr(instruction))
    path = vectors or cache_dir() / "vectors" / f"{identity[:32]}.npy"
    yield path, identity
    if vectors is None:
        path.unlink()
        path.with_suffix(".json").unlink()
