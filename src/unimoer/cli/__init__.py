"""The command line: one file a verb; each parses and calls one function."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from unimoer.errors import UserError
from unimoer.runtime import favour_speed, share_cores

errors = Console(stderr=True)
INTERRUPTED = 130


def build_app() -> typer.Typer:
    """All verbs. Imported late, so that `--help` of one verb does not load torch for another."""
    from unimoer.cli import analyze, bench, data, evaluate, export, index, info, run, search, serve, train

    app = typer.Typer(
        name="unimoer",
        help="One frozen decoder with LoRA experts for retrieval and reranking, and the study of their interference.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("run")(run.run)
    app.command("train")(train.train)
    app.command("evaluate")(evaluate.evaluate)
    app.command("analyze")(analyze.analyze)
    app.command("export")(export.export)
    app.add_typer(data.app, name="data", help="List, fetch, build and check data sets.")
    app.add_typer(bench.app, name="bench", help="Measure speed against the peers, as ratios from one process.")
    app.command("index")(index.index)
    app.command("search")(search.search)
    app.command("serve")(serve.serve)
    app.command("info")(info.info)
    return app


def main(argv: list[str] | None = None) -> None:
    """Exit 0 when done, 2 with one line for a user's mistake, 130 when interrupted; a bug shows its traceback."""
    favour_speed()
    share_cores()
    try:
        build_app()(args=argv, standalone_mode=True)
    except UserError as error:
        errors.print(f"unimoer: {error}", style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        # Typer turns Ctrl-C into this exit code, without a word.
        if stop.code == INTERRUPTED:
            errors.print("unimoer: stopped; the same command goes on from the last checkpoint", highlight=False)
        raise
