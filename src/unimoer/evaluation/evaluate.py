"""One system, one collection, one task -> a ranking, and the files of its evaluation. The only path there is."""

from __future__ import annotations

import json
from pathlib import Path

from unimoer.data.trec import write_trec
from unimoer.evaluation import reference
from unimoer.evaluation.first_stage import is_shared, random_run, random_search, search_depth
from unimoer.evaluation.measures import Measure
from unimoer.evaluation.metrics import ceiling, drop_identical, evaluate_run, mean
from unimoer.evaluation.reference import ReferenceEncoder
from unimoer.evaluation.rerank import cut, rerank
from unimoer.evaluation.search import search
from unimoer.evaluation.suites import Collection
from unimoer.files import new_folder, write_text
from unimoer.model.inference import Report
from unimoer.model.unified import UnifiedModel
from unimoer.schema import EvaluationSummary, write_record
from unimoer.types import Run, Task

System = UnifiedModel | ReferenceEncoder | str
"""What can be ranked with; a string names a reference that needs no model."""

LISTED = ("recall",)
"""Metrics that reordering a fixed list cannot change: left out of reranking's."""


def rank(
    system: System,
    collection: Collection,
    candidates: Run,
    task: Task,
    *,
    depth: int,
    batch_tokens: int = 8192,
    report: Report | None = None,
) -> Run:
    """The ranking of one task by a model, a public encoder, or the references `bm25` and `random`.

    For embedding that is the whole corpus, to `depth` documents or more, for reranking the first `depth` of
    `candidates`, which hold no document that the collection ignores.
    """
    instruction = collection.config.instruction
    if task is Task.EMBEDDING:
        if isinstance(system, UnifiedModel):
            run: Run = search(
                system,
                collection.dataset,
                collection.queries,
                instruction=instruction,
                batch_tokens=batch_tokens,
                report=report,
                k=search_depth(collection, depth),
            )
        elif isinstance(system, ReferenceEncoder):
            run = reference.rank(system, collection.dataset, collection.queries, k=search_depth(collection))
        else:
            # A deeper list of candidates does not make BM25's search deeper than the others'.
            wide = search_depth(collection)
            run = random_search(collection, wide) if system == "random" else cut(candidates, wide)
        return drop_identical(run) if collection.config.ignore_identical_ids else run
    shortlist = cut(candidates, depth)
    if not isinstance(system, UnifiedModel):
        return random_run(shortlist) if system == "random" else shortlist
    return rerank(
        system,
        collection.dataset,
        collection.queries,
        shortlist,
        instruction=instruction,
        batch_tokens=batch_tokens,
        report=report,
    )


def above(reranked: Run, rest: Run) -> Run:
    """A whole ranking whose top is reranked: what was not reranked follows in its old order."""
    found = {}
    for query, scores in rest.items():
        top = reranked.get(query, {})
        # Ranks as scores: the two lists' own scores are of different kinds.
        order = sorted(top, key=lambda document: (-top[document], document))
        order += sorted((d for d in scores if d not in top), key=lambda document: (-scores[document], document))
        found[query] = {document: float(-place) for place, document in enumerate(order)}
    return found


def write_evaluation(
    folder: Path,
    run: Run,
    collection: Collection,
    *,
    measure: Measure,
    arm: str,
    seed: int,
    suite: str,
    key: str,
    step: int | None,
    first_stage: str,
    candidates: Run,
    depth: int,
) -> dict[str, float]:
    """Score a ranking and write `run.trec`, `per_query.jsonl` and `metrics.json`, all or none; returns the means."""
    per_query = evaluate_run(collection.qrels, run)
    reranked = measure.task is Task.RERANKING
    if reranked:
        per_query = {
            query: {name: value for name, value in values.items() if name.partition("@")[0] not in LISTED}
            for query, values in per_query.items()
        }
    means = mean(per_query)
    shared = reranked and is_shared(first_stage)
    summary = EvaluationSummary(
        dataset=collection.name,
        task=measure.task,
        arm=arm + measure.suffix(first_stage),
        seed=seed,
        suite=suite,
        key=key,
        step=step,
        queries=len(per_query),
        documents=len(collection.dataset.corpus),
        fingerprint=collection.dataset.fingerprint,
        metrics=means,
        first_stage=first_stage if reranked else None,
        depth=depth if reranked else None,
        ceiling=ceiling(collection.qrels, cut(candidates, depth)) if shared else None,
    )
    with new_folder(folder) as temporary:
        write_trec(run, temporary / "run.trec", f"{arm}-s{seed}")
        lines = (json.dumps({"query_id": query, **values}) + "\n" for query, values in sorted(per_query.items()))
        write_text(temporary / "per_query.jsonl", "".join(lines))
        write_record(temporary / "metrics.json", summary)
    return means
