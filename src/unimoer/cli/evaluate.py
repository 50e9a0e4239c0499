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
    task: Annotated[Tasks, typer.Option(help="What to evaluate.")] = Tasks.BOTH,
    split: Annotated[str, typer.Option(help="Which judgements to use.")] = "test",
    depth: Annotated[int, typer.Option(min=1, help="Candidates a query to rerank, from BM25.")] = 100,
    queries: Annotated[int | None, typer.Option(min=1, help="Sample this many queries.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go [default: RUN/eval-extra].")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a run on data it may never have seen, beside BM25 and its own untrained base.

    Without --data, on the data sets of the run's own configuration.
    """
    from unimoer.experiments.evaluation import evaluate_checkpoint
    from unimoer.model.backbone import resolve_device

    console = Console(markup=False, emoji=False)
    rows = evaluate_checkpoint(
        run,
        sources=data,
        tasks=task.tasks,
        split=split,
        depth=depth,
        queries=queries,
        output=output,
        device=resolve_device(device),
        console=console,
    )
    table = Table(title=Text(f"{run}"), title_justify="left")
    for column in ("data set", "task", "system", "nDCG@10", "MAP", "MRR@10", "Recall@100", "queries"):
        table.add_column(column, justify="left" if column in ("data set", "task", "system") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
