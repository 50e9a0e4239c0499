"""`unimoer search INDEX QUERY`: the best documents, with their scores and what they took."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unimoer.cli.options import Device

if TYPE_CHECKING:
    from unimoer.search import Hits


class How(StrEnum):
    FUSED = "fused"
    DENSE = "dense"
    BM25 = "bm25"


def search(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    query: Annotated[
        str | None, typer.Argument(help="What to look for [default: one query a line, from stdin].")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Documents to show.")] = 10,
    retrieve: Annotated[How, typer.Option(help="By both, by the vectors alone, or by the words alone.")] = How.FUSED,
    rerank: Annotated[int, typer.Option(min=0, help="Score this many of the best again, with the query beside.")] = 0,
    rrf: Annotated[bool, typer.Option("--rrf", help="Fuse by reciprocal ranks in place of weighted scores.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at all vectors, where FAISS would look at some.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a query, with whole texts.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the index's own model lies now, if it was moved.")] = None,
    device: Device = "auto",
) -> None:
    """Search an index: retrieve by meaning and by words, and, with --rerank N, score the best again."""
    from unimoer.errors import UserError
    from unimoer.search import SearchIndex

    console = Console(markup=False, emoji=False)
    found = SearchIndex.open(index, model=model, device=device)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    queries: Iterable[str] = [query] if query is not None else (line.rstrip("\n") for line in sys.stdin)
    for asked in queries:
        try:
            hits = found.search(asked, k, retrieve=retrieve.value, rerank=rerank, rrf=rrf, exact=exact)
        except ValueError:
            # Bytes of another encoding come as halves of surrogate pairs.
            raise UserError("the query is not UTF-8 text") from None
        if as_json:
            content = {"query": asked, "hits": [asdict(hit) for hit in hits.hits], "milliseconds": hits.milliseconds}
            typer.echo(json.dumps(content, ensure_ascii=False))
        else:
            _show(console, asked, hits, reranked=rerank > 0)


def _show(console: Console, query: str, hits: Hits, *, reranked: bool) -> None:
    if not hits.hits:
        console.print(f"nothing found for '{query}'")
        return
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True)
    for column in ("", "retrieval", *(["reranking"] if reranked else [])):
        table.add_column(column, justify="right", no_wrap=True, min_width=max(2, len(column)))
    widest = min(24, max(len(hit.id) for hit in hits.hits))
    table.add_column("id", overflow="ellipsis", no_wrap=True, min_width=widest, max_width=24)
    # What is left of the line.
    table.add_column("text", overflow="ellipsis", no_wrap=True, ratio=1)
    for place, hit in enumerate(hits.hits, 1):
        own = [] if not reranked else ["" if hit.reranking is None else f"{hit.reranking:.2f}"]
        # As text: a document may hold what Rich would take for markup.
        table.add_row(str(place), f"{hit.retrieval:.3f}", *own, Text(hit.id), Text(" ".join(hit.text.split())[:400]))
    console.print(table)
    took = ", ".join(f"{name} {value:.1f} ms" for name, value in hits.milliseconds.items())
    console.print(took, highlight=False)
