"""`unimoer run rag`: questions answered out of what was found, by one model for both stages, by two, and without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unimoer.cli.options import command_line, find_config
from unimoer.errors import UserError

RAG = "rag"


def ask(
    config: str | None,
    overrides: Sequence[str] | None,
    output: Path | None,
    device: str,
    *,
    meaningless: Sequence[str],
) -> None:
    """Run or continue the experiment of a configuration, `rag` by default.

    Raises:
        UserError: an option of studies was given, which train and plan arms, or whatever else the user can put right.
    """
    from rich.markdown import Markdown

    from unimoer.config import load_rag
    from unimoer.model.backbone import resolve_device
    from unimoer.rag.run import run_rag
    from unimoer.units import duration

    if meaningless:
        raise UserError(f"{meaningless[0]}: is of studies that train; rag has --config, --set, --output and --device")
    console = Console(markup=False, emoji=False)
    started = time.perf_counter()
    settings = load_rag(find_config(config or RAG), list(overrides or ()))
    folder = output or Path("runs") / settings.name
    run_rag(settings, folder, device=resolve_device(device), command=command_line(), console=console)
    console.print(Markdown((folder / "report.md").read_text(encoding="utf-8")))
    console.print(
        f"\nreport  {folder / 'report.md'}\ntime    {duration(time.perf_counter() - started)}", highlight=False
    )
