"""Hard negatives that are not false negatives: top-ranked documents, filtered by the score of the positive.

Filters of NV-Retriever (Moreira et al., arXiv 2407.15831, section 3), computed over any ranking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from unimoer.assets import cache_dir, staged
from unimoer.config import NegativesConfig
from unimoer.data.bm25 import BM25
from unimoer.data.formats import judged
from unimoer.types import RetrievalDataset, Run

MINER_VERSION = "1"
"""Raise it when the same configuration would mine other documents: cached results are then left aside."""

Negatives = dict[str, list[str]]
"""Query id -> document ids, hardest first."""


def mine(
    dataset: RetrievalDataset, split: str, *, scorer: Run | BM25, config: NegativesConfig | None = None
) -> Negatives:
    """Negatives for every query of `split` that has a relevant document; fewer where the filter leaves fewer.

    A document is never a negative of a query that any split judges it relevant for, nor when its content equals that of
    such a document. A positive that a run does not list is taken to score as its last document does, which bounds it
    from above; BM25 scores it exactly.
    """
    config = config or NegativesConfig()
    qrels = judged(dataset, split)
    positives = _positives(dataset, qrels)
    if isinstance(scorer, BM25):
        depth = config.range_max + max(map(len, positives.values()), default=0)
        run: Run = scorer.search({query: dataset.queries[query] for query in qrels}, depth)
        missing = {query: [key for key in positives[query] if key not in run[query]] for query in qrels}
        unlisted = scorer.score(dataset.queries, {query: keys for query, keys in missing.items() if keys})
    else:
        run, unlisted = scorer, {}

    mined: Negatives = {}
    for query, grades in qrels.items():
        ranked = run.get(query, {})
        known = {**ranked, **unlisted.get(query, {})}
        last = min(ranked.values(), default=0.0)
        own = [key for key, grade in grades.items() if grade > 0]
        bound = config.bound(min(known.get(key, last) for key in own))
        contents = {dataset.corpus[key].content for key in positives[query]}
        others = [
            (key, score)
            for key, score in sorted(ranked.items(), key=lambda item: (-item[1], item[0]))
            if key not in positives[query] and dataset.corpus[key].content not in contents
        ]
        window = others[config.range_min : config.range_max]
        mined[query] = [key for key, score in window if score < bound][: config.num_negatives]
    return mined


def mine_cached(
    dataset: RetrievalDataset,
    split: str,
    *,
    scorer: Run | BM25 | None = None,
    config: NegativesConfig | None = None,
) -> Negatives:
    """`mine`, kept as JSON in the cache folder under a hash of the data, scorer and configuration.

    Without a scorer, BM25 over the corpus, which is only built when nothing is cached.
    """
    config = config or NegativesConfig()
    key = [MINER_VERSION, dataset.fingerprint, split, config.model_dump_json(), _identity(scorer)]
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()
    path = cache_dir() / "negatives" / f"{digest[:32]}.json"
    if path.exists():
        cached: Negatives = json.loads(path.read_text("utf-8"))
        return cached
    if scorer is None:
        scorer = BM25.of(dataset, split_identifiers=config.split_identifiers)
    mined = mine(dataset, split, scorer=scorer, config=config)
    with staged(path) as temporary:
        temporary.write_text(json.dumps(mined), "utf-8")
    return mined


def judged_negatives(dataset: RetrievalDataset, split: str) -> Negatives:
    """Documents that the data set itself has as not relevant (grade 0 or below).

    Those of a triplets file are as a rule mined, not judged: they may be relevant without anybody having looked.
    """
    return {
        query: [key for key, grade in grades.items() if grade <= 0] for query, grades in judged(dataset, split).items()
    }


def _positives(dataset: RetrievalDataset, queries: Collection[str]) -> dict[str, set[str]]:
    """Relevant documents by all splits: what another split knows to be relevant is no negative in this one."""
    found: dict[str, set[str]] = {query: set() for query in queries}
    for qrels in dataset.qrels.values():
        for query, grades in qrels.items():
            if query in found:
                found[query].update(key for key, grade in grades.items() if grade > 0)
    return found


def _identity(scorer: Run | BM25 | None) -> str:
    """What of the scorer decides the result."""
    if scorer is None:
        return "bm25"
    if isinstance(scorer, BM25):
        return scorer.fingerprint
    content = json.dumps({query: sorted(scores.items()) for query, scores in sorted(scorer.items())})
    return hashlib.sha256(content.encode()).hexdigest()
