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

    Without --data and --suite, on the suite of the run's own configuration, with what the other options change of it.
    """
    from unimoer.config import SuiteConfig
    from unimoer.executors.progress import Progress
    from unimoer.model.backbone import resolve_device
    from unimoer.runs.checkpoint import evaluate_checkpoint, suite_of

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
    table = Table(title=Text(f"{run}"), title_justify="left", box=None, pad_edge=False)
    for column in ("data set", "task", "system"):
        table.add_column(column, overflow="fold")
    for column in ("nDCG@10", "MAP", "MRR@10", "R@100", "queries"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in scores:
        values = [one.metrics.get(name) for name in ("ndcg@10", "map", "mrr@10", "recall@100")]
        numbers = ("" if value is None else f"{value:.4f}" for value in values)
        table.add_row(one.dataset, one.task.value, one.arm, *numbers, str(one.queries))
    console.print(table)
