"""`unimoer serve MODEL`: embeddings, reranking and search over HTTP."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device
from unimoer.errors import UserError

KEY = "UNIMOER_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def names(host: str, allowed: Sequence[str]) -> frozenset[str]:
    """What requests may call a server that listens on `host`; empty: anything."""
    try:
        address = ipaddress.ip_address(host)
        local, own = address.is_loopback, f"[{address}]" if address.version == 6 else str(address)
    except ValueError:
        local, own = host.lower() == "localhost", host
    for one in allowed:
        if re.search(r":\d+$", one) or "/" in one:
            raise UserError(f"--allow-host {one}: a name alone, without port or path")
    return frozenset(one.lower() for one in (*allowed, *LOOPBACK, own)) if local or allowed else frozenset()


def serve(
    model: Annotated[
        str, typer.Argument(help="A released model, a run, or a saved folder [default: that of --index].")
    ] = "",
    index: Annotated[Path | None, typer.Option(help="An index to search, made by the same model.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may give this server; repeat it [default: any, but on loopback its own]."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model [default: its folder's name].")] = "",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a forward pass.")] = None,
    queue_tokens: Annotated[int, typer.Option(min=1, help="Tokens that may wait; beyond: 429.")] = 262_144,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts in one request.")] = 2048,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of one text.")] = 1_000_000,
    body_seconds: Annotated[float, typer.Option(min=0.1, help="To wait for the next piece of a request.")] = 30,
    token_ids: Annotated[
        str | None,
        typer.Option(help="Whose token ids clients may send: own, a tokenizer's folder or id, tiktoken:NAME."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Serve a model. The API key is read from UNIMOER_API_KEY; without it, anybody who can connect may ask."""
    from unimoer.serving.server import serve as run
    from unimoer.serving.settings import Settings

    settings = Settings(
        name=name,
        hosts=names(host, allow_host or ()),
        api_key=os.environ.get(KEY) or None,
        batch_tokens=batch_tokens,
        queue_tokens=queue_tokens,
        max_texts=max_texts,
        max_characters=max_characters,
        body_seconds=body_seconds,
        token_ids=token_ids,
    )
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    run(model or None, index, settings, host=host, port=port, device=device, tell=console.print)
