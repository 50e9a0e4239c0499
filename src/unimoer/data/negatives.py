"""Hard negatives that are not false negatives: top-ranked documents, filtered by the score of the positive.

Filters of NV-Retriever (Moreira et al., arXiv 2407.15831, section 3), computed over any ranking.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from unimoer.assets import cache_dir, staged
from unimoer.config import NegativesConfig
from unimoer.data.bm25 import BM25
from unimoer.data.formats import judged
from unimoer.errors import UserError
from unimoer.types import Qrels, RetrievalDataset, Run

MINER_VERSION = "1"
"""Raise it when the same configuration would mine other documents: cached results are then left aside."""

BATCH = 1024
"""Queries whose rankings are in memory at a time, and whose negatives are kept together."""

Negatives = dict[str, list[str]]
"""Query id -> document ids, hardest first."""
Positives = dict[str, set[str]]
"""Query id -> ids of relevant documents."""


def mine(
    dataset: RetrievalDataset,
    split: str,
    *,
    scorer: Run | BM25,
    config: NegativesConfig | None = None,
    known: Positives | None = None,
) -> Negatives:
    """Negatives for every query of `split` that has a relevant document; fewer where the filter leaves fewer.

    A document is never a negative of a query that any split judges it relevant for, nor when its content equals that of
    such a document or it is of the same family. `known` are relevant documents that the data set does not say, as that
    of one split does not say those of others. A positive that a run does not list is taken to score as its last
    document does, which bounds it from above; BM25 scores it exactly. Any engine's ranking is such a run: `read_trec`
    reads one.
    """
    mined: Negatives = {}
    for batch in _batches(dataset, split, (), lambda: scorer, config or NegativesConfig(), known or {}):
        mined.update(batch)
    return mined


def mine_cached(
    dataset: RetrievalDataset,
    split: str,
    *,
    scorer: Run | BM25 | None = None,
    config: NegativesConfig | None = None,
    known: Positives | None = None,
) -> Negatives:
    """`mine`, kept as JSON in the cache folder under a hash of the data, scorer and configuration.

    Without a scorer, BM25 over the corpus, which is only built when something is left to mine. Every batch of queries
    is kept as soon as it is mined, so that a process that is killed loses one batch.
    """
    config = config or NegativesConfig()
    key = [MINER_VERSION, dataset.fingerprint, split, config.model_dump_json(), _identity(scorer)]
    if known:
        key.append(json.dumps({query: sorted(documents) for query, documents in sorted(known.items())}))
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()
    path = cache_dir() / "negatives" / f"{digest[:32]}.json"
    if path.exists():
        cached: Negatives = json.loads(path.read_text("utf-8"))
        return cached

    def build() -> Run | BM25:
        return BM25.of(dataset, split_identifiers=config.split_identifiers) if scorer is None else scorer

    partial = path.with_suffix(".partial.jsonl")
    try:
        mined = _kept(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered and to the end of the file: a batch is one write, whole also beside another process's.
        with partial.open("ab", buffering=0) as file:
            for batch in _batches(dataset, split, mined, build, config, known or {}):
                file.write("".join(json.dumps([query, keys]) + "\n" for query, keys in batch.items()).encode())
                mined.update(batch)
        mined = {query: mined[query] for query in judged(dataset, split)}
        with staged(path) as temporary:
            temporary.write_text(json.dumps(mined), "utf-8")
        partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written: {error.strerror}; free space, or move the cache with $UNIMOER_CACHE"
        ) from error
    return mined


def _batches(
    dataset: RetrievalDataset,
    split: str,
    done: Collection[str],
    scorer: Callable[[], Run | BM25],
    config: NegativesConfig,
    known: Positives,
) -> Iterator[Negatives]:
    """The negatives of every query that is not `done`, `BATCH` queries at a time."""
    qrels = judged(dataset, split)
    left = iter([query for query in qrels if query not in done])
    first = list(islice(left, BATCH))
    if not first:
        return
    positives = _positives(dataset, qrels, known)
    largest_family = max(Counter(dataset.families.values()).values(), default=0)
    depth = config.range_max + max(map(len, positives.values()), default=0) * max(1, largest_family)
    ranked = scorer()
    for queries in chain([first], iter(lambda: list(islice(left, BATCH)), [])):
        yield _mine(dataset, qrels, queries, positives, ranked, depth, config)


def _mine(
    dataset: RetrievalDataset,
    qrels: Qrels,
    queries: Sequence[str],
    positives: Mapping[str, set[str]],
    scorer: Run | BM25,
    depth: int,
    config: NegativesConfig,
) -> Negatives:
    if isinstance(scorer, BM25):
        run: Run = scorer.search({query: dataset.queries[query] for query in queries}, depth)
        missing = {query: [key for key in positives[query] if key not in run[query]] for query in queries}
        unlisted = scorer.score(dataset.queries, {query: keys for query, keys in missing.items() if keys})
    else:
        run, unlisted = scorer, {}
    mined: Negatives = {}
    for query in queries:
        ranked = run.get(query, {})
        known = {**ranked, **unlisted.get(query, {})}
        last = min(ranked.values(), default=0.0)
        own = [key for key, grade in qrels[query].items() if grade > 0]
        bound = config.bound(min(known.get(key, last) for key in own))
        contents = {dataset.corpus[key].content for key in positives[query]}
        families = dataset.families_of(positives[query])
        others = (
            (key, score)
            for key, score in sorted(ranked.items(), key=lambda item: (-item[1], item[0]))
            if key not in positives[query]
            and dataset.families.get(key) not in families
            and dataset.corpus[key].content not in contents
        )
        window = islice(others, config.range_min, config.range_max)
        mined[query] = [key for key, score in window if score < bound][: config.num_negatives]
    return mined


def _kept(partial: Path) -> Negatives:
    """What a killed process left; a last line that it did not finish is cut off, for the next to be appended."""
    if not partial.exists():
        return {}
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(partial, len(whole))
    return dict(map(json.loads, whole.splitlines()))


def judged_negatives(dataset: RetrievalDataset, split: str) -> Negatives:
    """Documents that the data set itself has as not relevant (grade 0 or below).

    Those of a triplets file are as a rule mined, not judged: they may be relevant without anybody having looked.
    """
    return {
        query: [key for key, grade in grades.items() if grade <= 0] for query, grades in judged(dataset, split).items()
    }


def relevant_elsewhere(dataset: RetrievalDataset, split: str) -> Positives:
    """What other splits judge relevant for the queries of this one, by query; none where no split shares a query."""
    found: Positives = {}
    for other, qrels in dataset.qrels.items():
        for query in qrels.keys() & dataset.split(split).keys() if other != split else ():
            found.setdefault(query, set()).update(key for key, grade in qrels[query].items() if grade > 0)
    return {query: documents for query, documents in found.items() if documents}


def _positives(dataset: RetrievalDataset, queries: Collection[str], known: Positives) -> dict[str, set[str]]:
    """Relevant documents by all splits: what another split knows to be relevant is no negative in this one."""
    found = {query: {key for key in known.get(query, ()) if key in dataset.corpus} for query in queries}
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
