"""Retrieval metrics per query, and the ceiling of a candidate list.

The numbers are trec_eval's, computed by pytrec_eval, with the two choices that trec_eval leaves to its caller made
once, here: which queries count, and where the reciprocal rank is cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import pytrec_eval

from unimoer.data.trec import finite
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Qrels, Run

METRICS = ("ndcg@10", "map", "mrr@10", "recall@100")
"""What every evaluation reports; the first is what decisions are made on."""

PerQuery = dict[str, dict[str, float]]
"""Query id -> metric -> value in [0, 1]."""

_CUT = re.compile(r"(ndcg|mrr|recall)@([1-9]\d*)")


def evaluate_run(qrels: Qrels, run: Run, metrics: Sequence[str] = METRICS) -> PerQuery:
    """Score a ranking query by query: `ndcg@k` (linear gain), `recall@k`, `mrr@k`, `map`.

    Every query with at least one positive judgement counts, with 0 where the run has no documents for it; queries
    without positives are excluded, because no ranking of them is better than another. Queries that only the run knows
    are ignored.

    Ties are broken as trec_eval breaks them: scores are compared as float32, equal ones by document id in descending
    byte order. A model that returns equal scores is therefore judged on an order that it did not choose.

    Raises UserError for an unknown metric, ValueError for a score that is not finite.
    """
    cuts = {metric: _parse(metric) for metric in metrics}
    judged = {
        query: {document: int(grade) for document, grade in grades.items()}
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    ranked = {query: finite(query, run[query]) for query in judged if run.get(query)}
    names = {name if name == "map" or name == "recip_rank" else f"{name}.{cut}" for name, cut in cuts.values()}
    scored = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(ranked) if judged and names else {}

    per_query: PerQuery = {}
    for query in judged:
        values = scored.get(query)
        per_query[query] = {
            metric: 0.0 if values is None else _read(values, name, cut) for metric, (name, cut) in cuts.items()
        }
    return per_query


def mean(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the queries, whatever their order (the sum is exactly rounded); empty for no queries."""
    columns: dict[str, list[float]] = {}
    for values in per_query.values():
        for metric, value in values.items():
            columns.setdefault(metric, []).append(value)
    return {metric: math.fsum(column) / len(column) for metric, column in columns.items()}


def ceiling(qrels: Qrels, candidates: Mapping[str, Iterable[str]], k: int = 10) -> dict[str, float]:
    """What a perfect reranker of these candidates would reach: `{"recall", "ndcg@k"}`, means over the judged queries.

    `recall` is the share of a query's relevant documents that are candidates at all; `ndcg@k` is that of the candidates
    ordered by grade, against the ideal over all judged documents. A query without candidates counts as 0. `candidates`
    may be a run: only its document ids are read.
    """
    recalls: list[float] = []
    oracle: dict[str, dict[str, float]] = {}
    for query, grades in qrels.items():
        positives = {document for document, grade in grades.items() if grade > 0}
        if not positives:
            continue
        listed = set(candidates.get(query, ()))
        recalls.append(len(positives & listed) / len(positives))
        oracle[query] = {document: float(grades.get(document, 0)) for document in listed}
    metric = f"ndcg@{k}"
    best = mean(evaluate_run(qrels, oracle, (metric,)))
    return {"recall": math.fsum(recalls) / len(recalls) if recalls else 0.0, metric: best.get(metric, 0.0)}


def drop_identical(run: Run) -> dict[str, dict[str, float]]:
    """The run without documents that have their query's own id.

    In ArguAna and Quora queries are documents of the corpus, and a query finds itself first; BEIR's and MTEB's figures
    for these sets leave it out (`ignore_identical_ids`). Drop it before a list is cut to its depth, or rank one
    document more: a query that finds itself has one document less than the others.
    """
    return {
        query: {document: score for document, score in documents.items() if document != query}
        for query, documents in run.items()
    }


def _parse(metric: str) -> tuple[str, int]:
    """pytrec_eval's measure name and the cut-off (0: none) of one of our metric names."""
    if metric == "map":
        return "map", 0
    match = _CUT.fullmatch(metric)
    if match is None:
        raise UserError(f"unknown metric '{metric}'{did_you_mean(metric, METRICS)}")
    name, cut = match[1], int(match[2])
    return {"ndcg": "ndcg_cut", "recall": "recall", "mrr": "recip_rank"}[name], cut


def _read(values: Mapping[str, float], name: str, cut: int) -> float:
    if name == "recip_rank":
        # trec_eval has no cut for the reciprocal rank: below 1/cut, the first relevant document ranks past it.
        rank = values[name]
        return rank if rank > 1.0 / (cut + 0.5) else 0.0
    return values[name if name == "map" else f"{name}_{cut}"]
