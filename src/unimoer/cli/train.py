"""`unimoer train CONFIG`: one run, without the rest of a study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device, Overrides, find_config


def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    output: Annotated[Path | None, typer.Option(help="Run folder [default: runs/ARM-sSEED-KEY].")] = None,
    device: Device = "auto",
    overrides: Overrides = None,
) -> None:
    """Train and evaluate one arm with one seed.

    Choose them in the file or with --set 'arms=[joint_single]' --set 'seeds=[42]'. The same command continues an
    interrupted run. On several devices: torchrun --nproc-per-node N -m unimoer train ...
    """
    from unimoer.config import load_config
    from unimoer.errors import UserError
    from unimoer.executors.progress import Progress
    from unimoer.model.backbone import resolve_device
    from unimoer.runs import execute, is_done
    from unimoer.studies.planning import single_run
    from unimoer.studies.run import workload

    settings = load_config(find_config(config), overrides or ())
    if len(settings.arms) != 1 or len(settings.seeds) != 1:
        raise UserError(
            f"{config}: {len(settings.arms)} arms and {len(settings.seeds)} seeds; train makes one run: "
            "add --set 'arms=[joint_single]' --set 'seeds=[42]', or use `unimoer run kill-gate`"
        )
    if settings.variants:
        raise UserError(
            f"{config}: variants: train makes one run, and these are points of a study; use `unimoer run scale`, or a "
            "file without them"
        )
    # Of the processes that torchrun starts, the first one speaks.
    console = Console(markup=False, emoji=False, quiet=os.environ.get("RANK", "0") != "0")
    spec = single_run(settings, resolve_device(device))
    folder = output or Path("runs") / spec.folder
    if is_done(folder, spec):
        console.print(f"{folder}: already done", highlight=False, soft_wrap=True)
    else:
        with Progress(console, workload([spec])) as progress:
            execute(spec, folder, progress.take)
    console.print(f"run  {folder}", highlight=False, soft_wrap=True)
