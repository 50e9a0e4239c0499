"""`unimoer run`: an experiment, from data to verdict and report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device, Overrides, command_line, find_config

app = typer.Typer(no_args_is_help=True)

Config = Annotated[str, typer.Option(help="A YAML file, or the name of a shipped one.")]
Output = Annotated[Path | None, typer.Option(help="Experiment folder [default: runs/NAME].")]
Arms = Annotated[str | None, typer.Option(help="Comma-separated, e.g. emb_only,rank_only,joint_single,hard_switch.")]

EXPERIMENT1 = "emb_only,rank_only,joint_single,joint_moe,hard_switch"


@app.callback()
def _group() -> None:
    """Run an experiment from data to verdict."""


@app.command("kill-gate")
def kill_gate(
    quick: Annotated[bool, typer.Option("--quick", help="The ten-minute tier: one seed, small samples.")] = False,
    config: Config = "full",
    arms: Arms = None,
    device: Device = "auto",
    output: Output = None,
    overrides: Overrides = None,
) -> None:
    """Train specialists and the joint model, measure the Task Interference Ratio, and decide.

    The same command continues an interrupted experiment; with more arms it adds them to a finished one.
    """
    _run("quick" if quick else config, arms, None, device, output, overrides)


@app.command("experiment1")
def experiment1(
    quick: Annotated[bool, typer.Option("--quick", help="The twenty-minute tier: one seed, small samples.")] = False,
    config: Config = "full",
    arms: Arms = EXPERIMENT1,
    device: Device = "auto",
    output: Output = None,
    overrides: Overrides = None,
) -> None:
    """The kill gate, and whether routed experts or a hard task switch win back what one adapter loses.

    With --output of a kill gate of the same configuration, only the arms that it lacks are trained.
    """
    _run("quick" if quick else config, arms, "experiment1", device, output, overrides)


def _run(
    config: str, arms: str | None, name: str | None, device: str, output: Path | None, overrides: list[str] | None
) -> None:
    from unimoer.config import load_config
    from unimoer.experiments.progress import duration
    from unimoer.experiments.runner import run_experiment
    from unimoer.files import read_json
    from unimoer.model.backbone import resolve_device
    from unimoer.report.html import build_report
    from unimoer.report.tables import terminal_summary

    console = Console(markup=False, emoji=False)
    started = time.perf_counter()
    changes = list(overrides or ())
    if arms is not None:
        changes.append(f"arms=[{arms}]")
    settings = load_config(find_config(config), changes)
    if name is not None:
        settings = settings.model_copy(update={"name": settings.name.replace("kill-gate", name)})
    folder = output or Path("runs") / settings.name
    run_experiment(settings, folder, device=resolve_device(device), command=command_line(), console=console)
    report = build_report(folder)
    console.print(terminal_summary(read_json(folder / "decision.json"), read_json(folder / "results.json")))
    console.print(f"\nreport  {report}\ntime    {duration(time.perf_counter() - started)}", highlight=False)
