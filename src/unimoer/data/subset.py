"""Smaller data sets by hash: the same sample on every machine, and a larger sample contains the smaller one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from heapq import nsmallest

from unimoer.data.formats import judged
from unimoer.errors import UserError, did_you_mean
from unimoer.types import RetrievalDataset


def subset(
    dataset: RetrievalDataset, *, queries: Mapping[str, int | None], documents: int | None, seed: int
) -> RetrievalDataset:
    """Keep some queries of each split, their judged documents, and a sample of the other documents.

    `queries` gives the number per split, None for all; splits that it does not name are dropped, and queries without a
    relevant document are never drawn. `documents` is the size of the corpus, None for the whole; the judged documents
    of the kept queries are always in it, even where they are more.

    Raises UserError for a split that the data set does not have.
    """
    qrels = {}
    for split, count in queries.items():
        if split not in dataset.qrels:
            raise UserError(f"data set '{dataset.name}' has no split '{split}'{did_you_mean(split, dataset.qrels)}")
        candidates = judged(dataset, split)
        kept = candidates.keys() if count is None else set(_sample(candidates, count, seed))
        qrels[split] = {query: grades for query, grades in candidates.items() if query in kept}

    kept_queries = {query for grades in qrels.values() for query in grades}
    if documents is None:
        corpus = dataset.corpus
    else:
        needed = {key for split in qrels.values() for grades in split.values() for key in grades}
        others = (key for key in dataset.corpus if key not in needed)
        needed.update(_sample(others, max(0, documents - len(needed)), seed))
        corpus = {key: document for key, document in dataset.corpus.items() if key in needed}
    texts = {query: text for query, text in dataset.queries.items() if query in kept_queries}
    families = {key: family for key, family in dataset.families.items() if key in corpus}
    return replace(dataset, corpus=corpus, queries=texts, qrels=qrels, families=families)


def part(dataset: RetrievalDataset, split: str, shares: tuple[float, float], seed: int) -> RetrievalDataset:
    """Keep the judged queries of a split whose place in the order of their hashes lies between two shares.

    Parts that meet share no query and leave none out; the corpus stays whole.
    """
    if shares == (0.0, 1.0):
        return dataset
    # Its own stream of hashes: a sample from a part is a sample, not the part's beginning.
    order = _sample(judged(dataset, split), len(dataset.qrels[split]), f"part {seed}")
    first, last = (round(share * len(order)) for share in shares)
    kept = set(order[first:last])
    grades = {query: found for query, found in dataset.qrels[split].items() if query in kept}
    return replace(dataset, qrels={**dataset.qrels, split: grades})


def _sample(keys: Iterable[str], count: int, seed: int | str) -> list[str]:
    """The `count` keys with the smallest hashes: no generator whose stream depends on order or version."""
    return nsmallest(count, keys, key=lambda key: (hashlib.sha1(f"{seed}|{key}".encode()).digest(), key))
