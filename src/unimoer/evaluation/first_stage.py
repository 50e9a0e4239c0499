"""Where the candidates for reranking come from: BM25, a model's own dense search, or anybody's TREC run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from random import Random

from unimoer.data.bm25 import BM25, LARGE
from unimoer.data.trec import read_trec
from unimoer.errors import UserError
from unimoer.evaluation.suites import Collection
from unimoer.types import Run

SEARCH_DEPTH = 100
"""Documents a query that a first stage is asked for, at least: what recall@100 is measured on."""


def search_depth(collection: Collection, depth: int = 0) -> int:
    """Documents to ask for: one more where a query that finds itself has it taken away."""
    return max(depth, SEARCH_DEPTH) + int(collection.config.ignore_identical_ids)


def is_shared(first_stage: str) -> bool:
    """Whether all systems rerank the same lists."""
    return first_stage != "dense"


def candidates_fingerprint(first_stage: str, collections: Iterable[str]) -> str:
    """SHA-256 of the run files that candidates come from; empty where they are computed.

    Raises:
        UserError: a file is missing.
    """
    if first_stage in ("bm25", "dense"):
        return ""
    content = hashlib.sha256()
    for file in sorted({_run_file(Path(first_stage), name) for name in collections}):
        try:
            content.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"{file}: no such run file; first_stage is bm25, dense, or run files") from error
    return content.hexdigest()


def shared_candidates(first_stage: str, collection: Collection, depth: int) -> Run:
    """Candidates that depend on no model, best first; BM25's are also its own ranking.

    Raises:
        UserError: a run file is missing, broken, or lists documents that the collection lacks.
    """
    if first_stage == "bm25":
        return bm25_run(collection, depth)
    return _from_file(Path(first_stage), collection)


def bm25_run(collection: Collection, depth: int) -> Run:
    index = BM25.of(collection.dataset, split_identifiers=collection.config.split_identifiers)
    return index.search(collection.queries, search_depth(collection, depth))


def random_run(candidates: Run) -> Run:
    """The same documents in an order that knows nothing: by hash, the same on every machine."""
    return {
        query: {document: _unit(f"{query}\0{document}") for document in documents}
        for query, documents in candidates.items()
    }


def random_search(collection: Collection, k: int = SEARCH_DEPTH) -> Run:
    """`k` documents of the corpus for every query, in an order that knows nothing."""
    found = {}
    corpus = collection.dataset.corpus
    if len(corpus) >= LARGE:
        # To hash every document for every query would take a day for 7,000 queries and 8.8 million passages.
        keys = list(corpus)
        for query in collection.queries:
            drawn = Random(query).sample(range(len(keys)), min(k, len(keys)))
            found[query] = {keys[place]: 1.0 - rank / k for rank, place in enumerate(drawn)}
        return found
    for query in collection.queries:
        scores = {document: _unit(f"{query}\0{document}") for document in collection.dataset.corpus}
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:k]
        found[query] = {document: scores[document] for document in best}
    return found


def _unit(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big") / 2**48


def _run_file(path: Path, collection: str) -> Path:
    return path / f"{collection}.trec" if path.is_dir() else path


def _from_file(path: Path, collection: Collection) -> Run:
    file = _run_file(path, collection.name)
    run = {query: documents for query, documents in read_trec(file).items() if query in collection.qrels}
    for query, documents in run.items():
        missing = next((document for document in documents if document not in collection.dataset.corpus), None)
        if missing is not None:
            raise UserError(
                f"{file}: document '{missing}' of query '{query}' is not in collection '{collection.name}'; "
                "rank its own corpus, or leave `documents` empty"
            )
    if not run:
        raise UserError(f"{file}: no candidates for any query of collection '{collection.name}'")
    return run
