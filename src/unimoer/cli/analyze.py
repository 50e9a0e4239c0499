"""`unimoer analyze EXPERIMENT_DIR`: decide and report again, from the files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def analyze(
    experiment: Annotated[Path, typer.Argument(help="Folder of a finished experiment.")],
) -> None:
    """Recompute results.json, decision.json, tables, figures and the report of a finished experiment."""
    from unimoer.experiments.summary import write_results
    from unimoer.files import read_json
    from unimoer.report.html import build_report
    from unimoer.report.tables import terminal_summary

    console = Console(markup=False, emoji=False)
    write_results(experiment)
    report = build_report(experiment)
    console.print(terminal_summary(read_json(experiment / "decision.json"), read_json(experiment / "results.json")))
    console.print(f"\nreport  {report}", highlight=False)
