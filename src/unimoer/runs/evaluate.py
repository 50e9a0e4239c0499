"""Evaluate one system on the suites of a specification: what is there already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from unimoer.config import RunSpec, SuiteSpec
from unimoer.data.trec import read_trec
from unimoer.evaluation.evaluate import System, above, rank, write_evaluation
from unimoer.evaluation.first_stage import SEARCH_DEPTH, candidates_fingerprint, is_shared
from unimoer.evaluation.fusion import combine, fuse
from unimoer.evaluation.measures import Measure
from unimoer.evaluation.metrics import drop_identical
from unimoer.evaluation.rerank import cut
from unimoer.evaluation.suites import Collection
from unimoer.model.unified import UnifiedModel
from unimoer.runs.data import bm25, candidates, suite_data
from unimoer.runs.events import Event, Watch
from unimoer.runs.folder import Wanted, expected
from unimoer.runs.identity import check_content
from unimoer.types import Run, Task

REFERENCE = "reference"
"""Kind of work of a system that needs no model."""


def kind_of(spec: RunSpec, wanted: Wanted) -> str:
    """Kind of work, for the estimate of the time left."""
    return f"evaluate {wanted.measure}" if spec.train is not None or spec.model is not None else REFERENCE


def evaluate(
    spec: RunSpec,
    folder: Path,
    load: Callable[[str], System],
    watch: Watch,
    spent: Callable[[float], None],
) -> None:
    """Bring a run's scores to their end from wherever they stand.

    `load` gives the system at a moment, and is asked only where something is missing; `spent` is told the seconds of
    each evaluation.
    """
    loaded: tuple[str, System] | None = None
    suites = {suite.name: suite for suite in spec.suites}
    for wanted in expected(folder, spec):
        kind = kind_of(spec, wanted)
        if wanted.is_done:
            watch(Event("skip", work=kind, units=1))
            continue
        if loaded is None or loaded[0] != wanted.moment:
            # One at a time: two copies of a large base may not fit beside each other.
            loaded = None
            loaded = (wanted.moment, load(wanted.moment))
        started = time.perf_counter()
        _one(spec, suites[wanted.suite], wanted, loaded[1], watch)
        elapsed = time.perf_counter() - started
        watch(Event("spent", work=kind, units=1, seconds=elapsed))
        spent(elapsed)


def _one(spec: RunSpec, suite: SuiteSpec, wanted: Wanted, system: System, watch: Watch) -> None:
    collection = suite_data(suite.suite)[wanted.collection]
    name = collection.name
    check_content("collection", {name: collection.dataset.fingerprint}, {name: suite.fingerprints[name]})
    listed = candidates_fingerprint(suite.suite.first_stage, suite_data(suite.suite))
    check_content("first stage", {suite.suite.first_stage: listed}, {suite.suite.first_stage: suite.candidates})
    where = "" if wanted.step is None else f" at step {wanted.step}"
    title = f"{spec.arm} seed {spec.seed}: {wanted.measure} on {wanted.collection}{where}"
    watch(Event("say", title, f"{len(collection.qrels)} queries"))

    def report(done: int, total: int) -> None:
        watch(Event("say", title, f"{done}/{total} texts"))

    depth, tokens = suite.suite.rerank_depth, spec.batch_tokens
    offered = _offered(suite, wanted, collection, system, tokens)
    if wanted.measure is Measure.FUSED:
        found = offered
    elif wanted.measure is Measure.BLENDED:
        # The system's own order has just been written beside it.
        own = read_trec(wanted.folder.with_name(Measure.RERANKING.value) / "run.trec")
        found = _fused(suite, cut(offered, depth), own)
    elif wanted.measure is Measure.SEARCH:
        top = cut(offered, depth)
        known = _known(wanted, system, top)
        new = {q: {key: score for key, score in top[q].items() if key not in known[q]} for q in top}
        added = rank(system, collection, new, Task.RERANKING, depth=depth, batch_tokens=tokens, report=report)
        own = {query: {**known[query], **added[query]} for query in top}
        found = above(own if suite.suite.first_stage_weight is None else _fused(suite, top, own), offered)
    else:
        task = wanted.measure.task
        # A deeper list of candidates does not make a deeper search.
        wide = depth if task is Task.RERANKING else 0
        found = rank(system, collection, offered, task, depth=wide, batch_tokens=tokens, report=report)
    write_evaluation(
        wanted.folder,
        found,
        collection,
        measure=wanted.measure,
        arm=spec.arm,
        seed=spec.seed,
        suite=suite.name,
        key=suite.key(spec.key, spec.train.model if spec.train is not None else spec.model),
        step=wanted.step,
        first_stage=suite.suite.first_stage,
        candidates=offered,
        depth=depth,
    )


def _offered(suite: SuiteSpec, wanted: Wanted, collection: Collection, system: System, batch_tokens: int) -> Run:
    """What a measure begins with: BM25's ranking, the first stage's candidates, or both kinds of search fused."""
    # Before anything is cut or fused: every list, and its ceiling, is one without its query.
    kept = drop_identical if collection.config.ignore_identical_ids else dict
    ranked = kept(bm25(suite.suite, collection.name))
    match wanted.measure:
        case Measure.FUSED:
            # The system's own search has just been written beside it.
            return _fused(suite, ranked, read_trec(wanted.folder.with_name(Measure.EMBEDDING.value) / "run.trec"))
        case Measure.SEARCH:
            return read_trec(wanted.folder.with_name(Measure.FUSED.value) / "run.trec")
        case Measure.RERANKING | Measure.BLENDED if is_shared(suite.suite.first_stage):
            return kept(candidates(suite.suite, collection.name))
        case Measure.RERANKING | Measure.BLENDED if isinstance(system, UnifiedModel):
            depth = suite.suite.rerank_depth
            if Task.EMBEDDING in suite.tasks and depth <= SEARCH_DEPTH:
                # What it searches for itself has just been written beside it.
                return read_trec(wanted.folder.with_name(Measure.EMBEDDING.value) / "run.trec")
            return rank(system, collection, {}, Task.EMBEDDING, depth=depth, batch_tokens=batch_tokens)
    return ranked


def _known(wanted: Wanted, system: System, top: Run) -> dict[str, dict[str, float]]:
    """Scores of these pairs that have just been written beside it; a list's would be others among other documents."""
    if isinstance(system, UnifiedModel) and system.config.reranking.kind.reads_lists:
        return {query: {} for query in top}
    before = read_trec(wanted.folder.with_name(Measure.RERANKING.value) / "run.trec")
    return {
        query: {key: score for key, score in before.get(query, {}).items() if key in scores}
        for query, scores in top.items()
    }


def _fused(suite: SuiteSpec, first: Run, own: Run) -> Run:
    """A first ranking and a system's own as one."""
    weight = suite.suite.first_stage_weight
    return fuse([first, own]) if weight is None else combine([(own, 1.0), (first, weight)])
