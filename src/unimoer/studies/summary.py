"""`results.json`: what every study has, whatever it estimates: scores with intervals, ceilings, costs, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unimoer.config import BM25, is_reference
from unimoer.errors import UserError
from unimoer.evaluation.metrics import mean
from unimoer.schema import Environment, EvaluationSummary
from unimoer.schema.results import Ceilings, Provenance, RunResult, SystemScore, TaskScores
from unimoer.studies.cells import cell, samples
from unimoer.studies.evidence import Evidence
from unimoer.studies.scores import Table
from unimoer.types import Task

_COMPARED = ("git_commit", "git_dirty", "packages", "python", "hardware")


def score_tables(evidence: Evidence, table: Table) -> dict[Task, TaskScores]:
    """Every system's scores on every collection and on their average."""
    return {task: _task_scores(evidence, table, task) for task in Task if table.datasets(task)}


def _task_scores(evidence: Evidence, table: Table, task: Task) -> TaskScores:
    metric, wanted = evidence.metric, evidence.seeds
    macro: dict[str, SystemScore] = {}
    datasets: dict[str, dict[str, SystemScore]] = {name: {} for name in table.datasets(task)}
    for system in table.systems(task):
        seeds = [seed for seed in wanted if table.covers(system, task, [seed])]
        if not seeds:
            continue
        # What ran once is one measurement, not one for each seed.
        ran = table.seeds(system, task)
        if is_reference(system) and len(ran) == 1:
            seeds = seeds[:1]
        matrices = table.matrices(system, task, metric, seeds)
        beside = system != BM25 and table.covers(BM25, task, seeds)
        found = samples({system: matrices} | ({BM25: table.matrices(BM25, task, metric, seeds)} if beside else {}))
        means = {name: _metrics(table, system, task, name, seeds) for name in datasets}
        for name in datasets:
            one = found.by_dataset[name][system]
            datasets[name][system] = SystemScore(
                score=cell(one, seeds),
                metrics=means[name],
                queries=matrices[name].shape[1],
                to_bm25=cell(one - found.by_dataset[name][BM25], seeds) if beside else None,
            )
        macro[system] = SystemScore(
            score=cell(found.macro[system], seeds),
            metrics=_average(list(means.values())),
            queries=sum(matrix.shape[1] for matrix in matrices.values()),
            to_bm25=cell(found.macro[system] - found.macro[BM25], seeds) if beside else None,
        )
    return TaskScores(macro=macro, datasets=datasets)


def _metrics(table: Table, system: str, task: Task, dataset: str, seeds: Sequence[int]) -> dict[str, float]:
    """Means of all metrics over queries and seeds."""
    rows = [
        mean(found)
        for (arm, seed, name, of), found in table.per_query.items()
        if (arm, name, of) == (system, dataset, task) and (seed in seeds or is_reference(system))
    ]
    return _average(rows)


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def ceilings(evidence: Evidence) -> Ceilings:
    """What the shared candidate lists allow, by collection and on average; every arm must have reranked the same.

    Raises:
        UserError: two arms did not.
    """
    found: dict[str, dict[str, float]] = {}
    first: dict[str, EvaluationSummary] = {}
    for key, summary in sorted(evidence.summaries.items(), key=lambda item: str(item[0])):
        if key.suite != evidence.suite or summary.ceiling is None:
            continue
        expected, where = found.setdefault(key.dataset, summary.ceiling), first.setdefault(key.dataset, summary)
        values = summary.ceiling
        if values.keys() != expected.keys() or any(abs(values[name] - expected[name]) > 1e-9 for name in values):
            raise UserError(
                f"{evidence.folder}: '{summary.arm}' and '{where.arm}' did not rerank the same candidates of "
                f"'{key.dataset}': their ceilings differ; remove the older evaluation and repeat the command"
            )
    return Ceilings(macro=_average(list(found.values())) if found else {}, datasets=found)


def run_results(evidence: Evidence) -> list[RunResult]:
    return [RunResult(folder=run.folder.name, status=run.status, key=run.spec.key) for run in evidence.runs]


def provenance(evidence: Evidence) -> Provenance:
    """Commit, packages and hardware of the runs, and the resolved settings that their numbers depend on."""
    trained = [run for run in evidence.runs if run.spec.train is not None]
    if not trained:
        return Provenance(environment=Environment())
    first = trained[0].environment
    differing = {
        name: {run.folder.name: str(getattr(run.environment, name)) for run in trained}
        for name in _COMPARED
        if any(getattr(run.environment, name) != getattr(first, name) for run in trained)
    }
    times = sorted(run.environment.time for run in trained)
    return Provenance(
        environment=first.model_copy(update={"key": "", "seed": 0, "time": times[0]}),
        differing=differing,
        base={run.spec.variant: run.spec.train.base for run in trained if run.spec.train is not None},
        settings=_settings(evidence),
        first_run=times[0],
        last_run=times[-1],
    )


def _settings(evidence: Evidence) -> dict[str, str]:
    """Of the first trained run; those that a variant changes are in the plan."""
    spec = next(run.spec.train for run in evidence.runs if run.spec.train is not None)
    model, training = spec.model, spec.training
    values: dict[str, Any] = {
        "base": model.base,
        "layers": model.layers or "all",
        "dtype of the base": spec.dtype,
        "device": spec.device,
        "adapter": f"rank {model.adapter.rank}, alpha {model.adapter.alpha:g}",
        "learning rate": f"{training.optimizer.lr:g}, {training.optimizer.schedule}",
        "steps": f"embedding {training.embedding.steps}, reranking {training.reranking.steps}",
        "batch": f"embedding {training.embedding.batch_size}, reranking {training.reranking.batch_size}",
        "query tokens": model.prompts.max_query_tokens,
        "document tokens": model.prompts.max_document_tokens,
        "score head": model.reranking.head,
    }
    return {name: str(value) for name, value in values.items()}
