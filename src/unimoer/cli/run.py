"""`unimoer run kill-gate`: from data to verdict and report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device, Overrides, command_line, find_config

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run an experiment from data to verdict."""


@app.command("kill-gate")
def kill_gate(
    quick: Annotated[bool, typer.Option("--quick", help="The ten-minute tier: one seed, small samples.")] = False,
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped one.")] = "full",
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Experiment folder [default: runs/NAME].")] = None,
    overrides: Overrides = None,
) -> None:
    """Train specialists and the joint model, measure the Task Interference Ratio, and decide.

    The same command continues an interrupted experiment.
    """
    from unimoer.config import load_config
    from unimoer.experiments.progress import duration
    from unimoer.experiments.runner import run_experiment
    from unimoer.files import read_json
    from unimoer.model.backbone import resolve_device
    from unimoer.report.html import build_report
    from unimoer.report.tables import terminal_summary

    console = Console(markup=False, emoji=False)
    started = time.perf_counter()
    settings = load_config(find_config("quick" if quick else config), overrides or ())
    folder = output or Path("runs") / settings.name
    run_experiment(settings, folder, device=resolve_device(device), command=command_line(), console=console)
    report = build_report(folder)
    console.print(terminal_summary(read_json(folder / "decision.json"), read_json(folder / "results.json")))
    console.print(f"\nreport  {report}\ntime    {duration(time.perf_counter() - started)}", highlight=False)
