"""One model, one data set, one task -> the files of `eval/<dataset>/<task>/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimoer.evaluation.metrics import ceiling, evaluate_run, mean, write_trec
from unimoer.evaluation.rerank import cut, rerank
from unimoer.evaluation.search import search
from unimoer.files import new_folder, write_json, write_text
from unimoer.model.inference import Report
from unimoer.model.unified import UnifiedModel
from unimoer.types import Qrels, RetrievalDataset, Run, Task

BM25_ARM = "bm25"


def rank(
    model: UnifiedModel | None,
    dataset: RetrievalDataset,
    queries: Mapping[str, str],
    candidates: Run,
    task: Task,
    *,
    depth: int,
    instruction: str | None = None,
    batch_tokens: int = 8192,
    report: Report | None = None,
) -> Run:
    """The ranking of one task; without a model, BM25's own.

    For embedding that is the whole corpus, for reranking the first `depth` of `candidates`.
    """
    if task is Task.EMBEDDING:
        if model is None:
            return candidates
        return search(model, dataset, queries, instruction=instruction, batch_tokens=batch_tokens, report=report)
    shortlist = cut(candidates, depth)
    if model is None:
        return shortlist
    return rerank(model, dataset, queries, shortlist, instruction=instruction, batch_tokens=batch_tokens, report=report)


def write_evaluation(
    folder: Path,
    run: Run,
    qrels: Qrels,
    *,
    dataset: RetrievalDataset,
    task: Task,
    arm: str,
    seed: int,
    candidates: Run,
    depth: int,
) -> dict[str, float]:
    """Score a ranking and write `run.trec`, `per_query.jsonl` and `metrics.json`, all or none; returns the means."""
    per_query = evaluate_run(qrels, run)
    means = mean(per_query)
    content: dict[str, Any] = {
        "dataset": dataset.name,
        "task": task.value,
        "arm": arm,
        "seed": seed,
        "queries": len(per_query),
        "documents": len(dataset.corpus),
        "data_fingerprint": dataset.fingerprint,
        "metrics": means,
    }
    if task is Task.RERANKING:
        content |= {"depth": depth, "ceiling": ceiling(qrels, cut(candidates, depth))}
    with new_folder(folder) as temporary:
        write_trec(run, temporary / "run.trec", f"{arm}-s{seed}")
        lines = (json.dumps({"query_id": query, **values}) + "\n" for query, values in sorted(per_query.items()))
        write_text(temporary / "per_query.jsonl", "".join(lines))
        write_json(temporary / "metrics.json", content)
    return means
