"""Evaluate a checkpoint on data of the user's choice, beside BM25 and its own untrained base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from rich.console import Console

from unimoer.config import DomainConfig, EvaluationConfig, parse_config
from unimoer.config.data import DataConfig
from unimoer.data.prepare import PreparedDomain, prepare_domain
from unimoer.errors import UserError
from unimoer.evaluation.evaluate import rank, write_evaluation
from unimoer.experiments.plan import BM25, UNTRAINED
from unimoer.experiments.progress import Progress
from unimoer.files import read_json, write_json
from unimoer.model.checkpoint import load_model, read_description
from unimoer.model.unified import UnifiedModel
from unimoer.provenance import environment
from unimoer.types import Task

TRAINED = "trained"


def checkpoint_folder(run: Path) -> Path:
    """The finished checkpoint of a run folder, or the folder itself if it is one.

    Raises:
        UserError: there is none.
    """
    for candidate in (run, run / "checkpoints" / "final"):
        if (candidate / "unimoer.json").is_file():
            return candidate
    raise UserError(f"{run}: no finished checkpoint here (looked for checkpoints/final/unimoer.json)")


def _domains(
    run: Path, sources: Sequence[str] | None, split: str, queries: int | None, depth: int
) -> dict[str, PreparedDomain]:
    if sources:
        names = [_name(source) for source in sources]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"--data: two sources are named '{twice}', and results of one would replace the other's")
        wanted = {
            _name(source): DomainConfig(source=source, train=False, test_split=split, test_queries=queries)
            for source in sources
        }
        data = DataConfig(domains=wanted)
    else:
        file = run / "config.yaml"
        if not file.is_file():
            raise UserError(f"{run}: no config.yaml to take data sets from; name them with --data")
        data = parse_config(yaml.safe_load(file.read_text(encoding="utf-8")), str(file)).data
        kept = {
            name: domain.model_copy(update={"train": False, "test_queries": queries or domain.test_queries})
            for name, domain in data.domains.items()
            if domain.evaluate
        }
        data = data.model_copy(update={"domains": kept})
    return {name: prepare_domain(name, domain, data, depth=depth) for name, domain in data.domains.items()}


def _name(source: str) -> str:
    """A folder name for a source: its last part."""
    return source.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]


def evaluate_checkpoint(
    run: Path,
    *,
    sources: Sequence[str] | None,
    tasks: Sequence[Task],
    split: str,
    depth: int,
    queries: int | None,
    output: Path | None,
    device: torch.device,
    console: Console,
) -> list[tuple[str, ...]]:
    """Write `OUTPUT/<dataset>/<task>/{bm25,untrained,trained}/` and return table rows.

    Raises:
        UserError: no checkpoint, wrong data, or no judged query in the split.
    """
    folder = checkpoint_folder(run)
    output = output or run / "eval-extra"
    rows: list[tuple[str, ...]] = []
    with Progress(console, {}) as progress:
        progress.update("preparing data", ", ".join(sources or ["as in the run's configuration"]))
        domains = _domains(run, sources, split, queries, depth)
        for system in (BM25, UNTRAINED, TRAINED):
            # One model at a time: two copies of a large base may not fit beside each other.
            model = _load(system, folder, device, progress)
            for name, domain in domains.items():
                for task in tasks:
                    rows.append(_evaluate(domain, name, task, system, model, output, depth, progress))
            del model
        write_json(output / "env.json", {**environment(str(device)), "run": str(run), "split": split, "depth": depth})
    return sorted(rows, key=lambda row: row[:2])


def _load(system: str, folder: Path, device: torch.device, progress: Progress) -> UnifiedModel | None:
    if system == BM25:
        return None
    progress.update(f"loading the {system} model", str(folder))
    if system == TRAINED:
        return load_model(folder, device)
    # The head that the run began with, where that is known: a learned one starts at random.
    # Resolved: a checkpoint may be named from inside its own folder.
    status = folder.resolve().parent.parent / "status.json"
    seed = int(read_json(status).get("seed", 0)) if status.is_file() else 0
    return UnifiedModel(read_description(folder)["model"], device, seed=seed)


def _evaluate(
    domain: PreparedDomain,
    name: str,
    task: Task,
    system: str,
    model: UnifiedModel | None,
    output: Path,
    depth: int,
    progress: Progress,
) -> tuple[str, ...]:
    texts = {query: domain.dataset.queries[query] for query in domain.test}
    title = f"{name}: {task}, {system}"
    progress.update(title, f"{len(texts)} queries")
    ranking = rank(
        model,
        domain.dataset,
        texts,
        domain.candidates,
        task,
        depth=depth,
        instruction=domain.config.instruction,
        batch_tokens=EvaluationConfig().batch_tokens,
        report=lambda done, total: progress.update(title, f"{done}/{total} texts"),
    )
    means = write_evaluation(
        output / name / task.value / system,
        ranking,
        domain.test,
        dataset=domain.dataset,
        task=task,
        arm=system,
        seed=0,
        candidates=domain.candidates,
        depth=depth,
    )
    values = [f"{means[metric]:.4f}" for metric in ("ndcg@10", "map", "mrr@10", "recall@100")]
    return (name, task.value, system, *values, str(len(domain.test)))
