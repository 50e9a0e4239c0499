"""`unimoer analyze STUDY_DIR`: estimate and report again, from the files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def analyze(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, with its runs or with scores.json.gz.")],
) -> None:
    """Compute results, decision, tables, figures and report again; nothing is trained or evaluated."""
    from unimoer.report.html import build_report
    from unimoer.report.terminal import summary
    from unimoer.studies.run import write_results

    console = Console(markup=False, emoji=False)
    write_results(study)
    report = build_report(study)
    console.print(summary(study))
    console.print(f"\nreport  {report}", highlight=False)
