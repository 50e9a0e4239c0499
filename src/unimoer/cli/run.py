"""`unimoer run STUDY`: a study, from data to results and report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device, Overrides, command_line, find_config
from unimoer.cli.rag import RAG, ask


def run(
    study: Annotated[str, typer.Argument(help="kill-gate, experiment1, budget, scale, ablation or rag.")],
    quick: Annotated[bool, typer.Option("--quick", help="The tier of minutes: one seed, small samples.")] = False,
    config: Annotated[
        str | None, typer.Option(help="A YAML file, or the name of a shipped one [default: the study's own].")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(help="Comma-separated, e.g. emb_only,rank_only,joint_single,hard_switch.")
    ] = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder of the study [default: runs/NAME].")] = None,
    executor: Annotated[str, typer.Option(help="Where runs happen: local, or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    amend: Annotated[
        bool, typer.Option("--amend", help="Change a frozen plan: a second decision names what changed.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train every arm and seed of a study, estimate from their scores, and report.

    The same command continues an interrupted study. Its plan is frozen at the first run. `rag` trains nothing: it asks
    trained models questions.
    """
    if study == RAG:
        given = {
            "--quick": quick,
            "--arms": arms is not None,
            "--executor": executor != "local",
            "--workers": workers != 1,
            "--amend": amend,
        }
        ask(config, overrides, output, device, meaningless=[name for name, used in given.items() if used])
        return
    from unimoer.config import load_config
    from unimoer.errors import UserError
    from unimoer.executors import build_executor
    from unimoer.model.backbone import resolve_device
    from unimoer.report.html import build_report
    from unimoer.report.terminal import summary
    from unimoer.studies import find_study
    from unimoer.studies.run import run_study
    from unimoer.units import duration

    console = Console(markup=False, emoji=False)
    started = time.perf_counter()
    found = find_study(study)
    if quick and config is not None:
        raise UserError(f"--quick and --config {config}: the study's quick configuration, or one of your own")
    place = find_config(config or (found.quick if quick else found.config))
    changes = list(overrides or ())
    if arms is not None:
        changes.append(f"arms=[{arms}]")
    elif found.arms is not None and config is None:
        # First: what the user sets comes after it.
        changes.insert(0, f"arms=[{','.join(found.arms)}]")
    settings = load_config(place, changes)
    folder = output or Path("runs") / found.prepare(settings).name
    run_study(
        found,
        settings,
        folder,
        device=resolve_device(device),
        command=command_line(),
        console=console,
        amend=amend,
        executor=build_executor(executor, workers),
    )
    report = build_report(folder)
    console.print(summary(folder))
    console.print(f"\nreport  {report}\ntime    {duration(time.perf_counter() - started)}", highlight=False)
