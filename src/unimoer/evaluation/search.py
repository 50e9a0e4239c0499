"""The embedding task: exact search over the whole corpus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unimoer.model.inference import Report, encode
from unimoer.model.unified import UnifiedModel
from unimoer.types import RetrievalDataset, Run

CHUNK = 65_536
"""Documents scored at a time: a query chunk against all of MS MARCO would not fit in memory."""


def top_k(
    queries: np.ndarray, documents: np.ndarray, query_ids: list[str], document_ids: list[str], k: int
) -> dict[str, dict[str, float]]:
    """The k nearest documents of each query by inner product, exactly; `[Q, d]`, `[N, d]`."""
    best = np.empty((len(query_ids), 0), dtype=np.float32)
    where = np.empty((len(query_ids), 0), dtype=np.int64)
    for start in range(0, len(document_ids), CHUNK):
        scores = queries @ documents[start : start + CHUNK].T
        positions = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        best = np.concatenate([best, scores], axis=1)
        where = np.concatenate([where, positions], axis=1)
        if best.shape[1] > k:
            keep = np.argpartition(-best, k - 1, axis=1)[:, :k]
            best, where = np.take_along_axis(best, keep, 1), np.take_along_axis(where, keep, 1)
    return {
        query: {document_ids[int(p)]: float(s) for s, p in zip(best[row], where[row], strict=True)}
        for row, query in enumerate(query_ids)
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
) -> Run:
    """Embed the corpus and the queries, and rank every document for every query."""
    document_ids, query_ids = list(dataset.corpus), list(queries)
    prompter = model.prompter
    texts = [dataset.corpus[key].content for key in document_ids]
    documents = encode(model, prompter.documents(texts, instruction), batch_tokens=batch_tokens, report=report)
    vectors = encode(model, prompter.queries(list(queries.values()), instruction), batch_tokens=batch_tokens)
    return top_k(vectors, documents, query_ids, document_ids, k)
