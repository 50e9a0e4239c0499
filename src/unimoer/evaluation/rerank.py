"""The reranking task: score fixed candidate lists, the same for every arm."""

from __future__ import annotations

from collections.abc import Mapping

from unimoer.config import READS_LISTS
from unimoer.model.inference import Report, score, score_lists
from unimoer.model.unified import UnifiedModel
from unimoer.types import RetrievalDataset, Run


def cut(run: Run, depth: int) -> dict[str, dict[str, float]]:
    """The `depth` best of each list; equal scores by document id."""
    return {
        query: dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:depth])
        for query, scores in run.items()
    }


def rerank(
    model: UnifiedModel,
    dataset: RetrievalDataset,
    queries: Mapping[str, str],
    candidates: Run,
    *,
    instruction: str | None = None,
    batch_tokens: int = 8192,
    report: Report | None = None,
) -> Run:
    """Score every candidate of every query; what is not a candidate is not ranked."""
    if model.config.reranking.head in READS_LISTS:
        return _rerank_lists(model, dataset, queries, candidates, instruction, batch_tokens, report)
    pairs = [(query, document) for query in queries for document in candidates.get(query, {})]
    if not pairs:
        return {query: {} for query in queries}
    ids = model.prompter.pairs(
        [queries[query] for query, _ in pairs], [dataset.corpus[key].content for _, key in pairs], instruction
    )
    logits = score(model, ids, batch_tokens=batch_tokens, report=report)
    run: dict[str, dict[str, float]] = {query: {} for query in queries}
    for (query, document), logit in zip(pairs, logits, strict=True):
        run[query][document] = float(logit)
    return run


def _rerank_lists(
    model: UnifiedModel,
    dataset: RetrievalDataset,
    queries: Mapping[str, str],
    candidates: Run,
    instruction: str | None,
    batch_tokens: int,
    report: Report | None,
) -> Run:
    """A query's candidates stand in the order of their first scores, as such heads are used."""
    ordered = cut(candidates, max(map(len, candidates.values()), default=0))
    keys = [list(ordered.get(query, {})) for query in queries]
    texts = [[dataset.corpus[key].content for key in group] for group in keys]
    found = score_lists(model, list(queries.values()), texts, instruction, batch_tokens=batch_tokens, report=report)
    return {
        query: dict(zip(group, cosines.tolist(), strict=True))
        for query, group, cosines in zip(queries, keys, found, strict=True)
    }
