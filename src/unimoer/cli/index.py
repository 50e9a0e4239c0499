"""`unimoer index`: documents into an index, and out of it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device


class Numbers(StrEnum):
    FLOAT16 = "float16"
    INT8 = "int8"


class Ann(StrEnum):
    AUTO = "auto"
    EXACT = "exact"
    IVF = "ivf"
    HNSW = "hnsw"


def index(
    output: Annotated[Path, typer.Argument(help="Folder of the index, new or there already.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="A .jsonl, a folder of text and Markdown or of BEIR files, embedded:NAME, hf:ID or ir:ID."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Run, saved folder or released model [default: the index's own; for a new one, the released]."
        ),
    ] = None,
    split_identifiers: Annotated[
        bool, typer.Option("--split-identifiers", help="Let BM25 split camelCase and snake_case words (code).")
    ] = False,
    vectors: Annotated[
        Numbers | None,
        typer.Option(help="What a new index keeps its vectors as: float16, or int8 in half the space."),
    ] = None,
    ann: Annotated[
        Ann | None,
        typer.Option(help="Search all vectors (exact), near ones by FAISS (ivf, hnsw), or by their number (auto)."),
    ] = None,
    delete: Annotated[list[str] | None, typer.Option(help="Take this document out. Repeatable.")] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Take out what the sources do not have.")] = False,
    device: Device = "auto",
) -> None:
    """Add documents to an index, replace those that have changed, delete those that are named.

    The same command goes on where a killed one stopped; until it has ended, searches see the index as it was.
    """
    from unimoer.assets.released import RELEASED
    from unimoer.errors import UserError
    from unimoer.executors.progress import Progress
    from unimoer.search import SearchIndex, read_documents
    from unimoer.search.store import Store

    if not sources and not delete and ann is None:
        raise UserError("nothing to do: name documents to add, or --delete some")
    if sync and not sources:
        raise UserError("--sync: goes with documents to add: what they do not have is taken out")
    console = Console(markup=False, emoji=False)
    there = (output / "index.json").exists()
    if not there and not sources:
        raise UserError(f"{output}: no index here to {'delete from' if delete else 'change'}")
    started = [read_documents(source) for source in sources or ()]
    with Progress(console, {}) as progress:
        progress.update("loading the model", model or "")
        if there and model is None and not split_identifiers and vectors is None and ann is None:
            found = SearchIndex.open(output, device=device)
        else:
            named = Store.open(output).state.model if there else next(iter(RELEASED))
            found = SearchIndex.create(
                output,
                model or named,
                split_identifiers=split_identifiers,
                vectors=None if vectors is None else vectors.value,
                ann=None if ann is None else ann.value,
                device=device,
            )
        seen: set[str] = set()

        def documents() -> Iterator[tuple[str, str]]:
            for source in started:
                for key, text in source:
                    seen.add(key)
                    yield key, text

        def report(done: int, total: int) -> None:
            progress.update("embedding", f"{done:,} of {total:,} texts of this part, {len(seen):,} read")

        said = []
        if sources:
            counts = found.add(documents(), report=report)
            superseded = counts.pop("superseded")
            said = [f"{count:,} {name}" for name, count in counts.items() if count]
            if superseded:
                progress.note(f"{superseded:,} texts have an id that comes again later: only the last one is kept")
        gone = found.delete(delete or ()) + (found.keep_only(seen) if sync else 0)
    if gone:
        said.append(f"{gone:,} deleted")
    summary = f"{', '.join(said) or 'nothing changed'}; {len(found):,} documents in {output} ({found.kind})"
    console.print(summary, soft_wrap=True)
