"""`unimoer evaluate RUN`: a trained run on any data set, with its references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unimoer.cli.options import Device, Tasks


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or a checkpoint folder.")],
    data: Annotated[
        list[str] | None, typer.Option(help="embedded:NAME, a BEIR folder, hf:ID or ir:ID. Repeatable.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="A named suite, or a folder of BEIR folders.")] = None,
    task: Annotated[
        Tasks | None, typer.Option(help="What to evaluate [default: what the run was trained for].")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which judgements to use [default: test].")] = None,
    first_stage: Annotated[
        str | None, typer.Option(help="Candidates: bm25, dense, or TREC run files [default: bm25].")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Candidates a query to rerank [default: 100].")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Sample this many queries.")] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="Sample the corpus down to this many.")] = None,
    split_identifiers: Annotated[
        bool, typer.Option("--split-identifiers", help="With --data: let BM25 split camelCase and snake_case (code).")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Where results go [default: the run's own folder].")] = None,
    trec: Annotated[
        Path | None,
        typer.Option(help="Also write the run's own rankings here, as TASK/COLLECTION.trec: to mine or rerank from."),
    ] = None,
    references: Annotated[
        bool, typer.Option(help="Evaluate BM25, a random order and the untrained base as well.")
    ] = True,
    device: Device = "auto",
) -> None:
    """Evaluate a run on data it may never have seen, beside BM25, a random order and its own untrained base.

    Differences to BM25 are paired by query; their intervals are over queries, and speak of this one trained model.

    Without --data and --suite, on the suite of the run's own configuration, with what the other options change of it.
    """
    from unimoer.config import SuiteConfig
    from unimoer.executors.progress import Progress
    from unimoer.model.backbone import resolve_device
    from unimoer.report import text
    from unimoer.runs.checkpoint import evaluate_checkpoint, scores_folder, suite_of
    from unimoer.studies.evaluated import rows

    console = Console(markup=False, emoji=False)
    asked = {"split": split, "first_stage": first_stage, "rerank_depth": depth}
    asked |= {"queries": queries, "documents": documents}
    given = {name: value for name, value in asked.items() if value is not None}
    wanted = suite_of(run, data, suite, SuiteConfig.model_validate(given), split_identifiers=split_identifiers)
    with Progress(console, {}) as progress:
        scores = evaluate_checkpoint(
            run,
            wanted,
            tasks=None if task is None else task.tasks,
            output=output,
            device=resolve_device(device),
            watch=progress.take,
            references=references,
            trec=trec,
        )
    table = Table(title=Text(f"{run}"), title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("data set", "task", "system"):
        table.add_column(column, overflow="fold")
    for column in ("nDCG@10", "to BM25", "95% interval", "R@100", "queries"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(scores_folder(run, output), scores):
        recall = row.metrics.get("recall@100")
        table.add_row(
            row.collection,
            row.task.value,
            row.system,
            text.score(row.score.mean),
            "" if row.to_bm25 is None else text.score(row.to_bm25.mean, signed=True),
            "" if row.to_bm25 is None else text.interval(row.to_bm25.ci95),
            "" if recall is None else f"{recall:.3f}",
            str(row.queries),
        )
    console.print(table)
