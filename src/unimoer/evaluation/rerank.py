"""The reranking task: score fixed candidate lists, the same for every arm."""

from __future__ import annotations

from collections.abc import Mapping

from unimoer.model.inference import Report
from unimoer.model.scoring import score_candidates
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
    """Score every candidate of every query; what is not a candidate is not ranked.

    A query's candidates stand in the order of their first scores, as heads that read lists are used.
    """
    ordered = cut(candidates, max(map(len, candidates.values()), default=0))
    keys = [list(ordered.get(query, {})) for query in queries]
    texts = [[dataset.corpus[key].content for key in group] for group in keys]
    found = score_candidates(
        model, list(queries.values()), texts, instruction, batch_tokens=batch_tokens, report=report
    )
    return {
        query: dict(zip(group, scores.tolist(), strict=True))
        for query, group, scores in zip(queries, keys, found, strict=True)
    }
