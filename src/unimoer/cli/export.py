"""`unimoer export RUN --output DIR`: trained weights for PEFT, transformers and sentence-transformers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Tasks
from unimoer.errors import UserError


class Form(StrEnum):
    PEFT = "peft"
    MERGED = "merged"
    PORTABLE = "portable"


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or a checkpoint folder.")],
    output: Annotated[Path, typer.Option(help="A new folder; one subfolder a task.")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="peft: LoRA adapters. merged: plain models, for sentence-transformers too. portable: one folder for "
            "unimoer.UniMoER.load, of any arm.",
        ),
    ] = Form.PEFT,
    onto: Annotated[
        Path | None,
        typer.Option(help="Of portable: the run whose merged weights this one began with; both become one LoRA."),
    ] = None,
    task: Annotated[
        Tasks | None, typer.Option(help="What to export [default: all that the run was trained for].")
    ] = None,
) -> None:
    """Export a run with fixed weights for other programs, one folder for each task that it was trained for.

    Plain LoRA, hard switch, hard switch with a shared expert, uniform. Each folder has a README with code that runs.
    """
    import torch

    from unimoer.model.checkpoint import load_model, read_description
    from unimoer.model.export import check_new, check_pairs, export_model
    from unimoer.model.merging import check_fixed
    from unimoer.runs.folder import checkpoint_folder, trained_tasks

    console = Console(markup=False, emoji=False)
    if form is Form.PORTABLE:
        from unimoer.library.portable import save_portable

        if task is not None:
            raise UserError(f"--task {task.value}: a portable folder holds all that the run was trained for")
        checkpoint, first = checkpoint_folder(run), None if onto is None else checkpoint_folder(onto)
        save_portable(checkpoint, output, trained_tasks(checkpoint), "auto", first)
        console.print(f"{form.value}  {output}", highlight=False, soft_wrap=True)
        return
    if onto is not None:
        raise UserError(f"--onto {onto}: joins two stages in a portable folder; add --format portable")
    checkpoint = checkpoint_folder(run)
    # What can be refused is refused before the base is loaded.
    check_new(output)
    described = read_description(checkpoint)["model"]
    check_fixed(described.adapter)
    trained = trained_tasks(checkpoint)
    tasks = trained if task is None else task.tasks
    untrained = [wanted for wanted in tasks if wanted not in trained]
    if untrained:
        raise UserError(f"{run}: was not trained for {untrained[0]}; leave --task out, or name {trained[0]}")
    check_pairs(described, tasks)
    model = load_model(checkpoint, torch.device("cpu"))
    for folder in export_model(model, output, form="merged" if form is Form.MERGED else "peft", tasks=tasks):
        console.print(f"{form.value}  {folder}", highlight=False, soft_wrap=True)
