"""`unimoer bench`: speed against the peers, as ratios measured in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimoer.cli.options import Device

app = typer.Typer(no_args_is_help=True)

Base = Annotated[str, typer.Option(help="Hub id, folder, GGUF file, or embedded:smollm2-135m.")]
Layers = Annotated[int, typer.Option(min=1, help="Decoder layers to keep.")]
Rank = Annotated[int, typer.Option(min=1, help="LoRA rank.")]
Pairs = Annotated[int, typer.Option(min=5, help="Alternating pairs.")]


@app.command("train")
def train(
    base: Base = "embedded:smollm2-135m",
    layers: Layers = 12,
    rank: Rank = 8,
    rows: Annotated[int, typer.Option(min=4, help="Texts a batch.")] = 48,
    length: Annotated[int, typer.Option(min=4, help="Tokens a text.")] = 40,
    pairs: Pairs = 9,
    arms: Annotated[bool, typer.Option("--arms", help="Routed experts against one LoRA and a loop instead.")] = False,
    device: Device = "auto",
) -> None:
    """Tokens per second of a training step against PEFT's LoRA, or of routed experts against one LoRA."""
    from unimoer.benchmarks.arms import bench_arms
    from unimoer.benchmarks.train import bench_train
    from unimoer.model.backbone import resolve_device

    bench = bench_arms if arms else bench_train
    bench(
        Console(),
        resolve_device(device),
        base=base,
        layers=layers,
        rows=rows,
        length=length,
        rank=rank,
        pairs=pairs,
    )


@app.command("encode")
def encode(
    base: Base = "embedded:smollm2-135m",
    layers: Layers = 12,
    rank: Rank = 8,
    texts: Annotated[int, typer.Option(min=8, help="Documents to encode.")] = 400,
    pairs: Pairs = 7,
    arms: Annotated[bool, typer.Option("--arms", help="Routed experts against fixed weights instead.")] = False,
    device: Device = "auto",
) -> None:
    """Texts per second against sentence-transformers with the adapter merged, or what routing costs."""
    from unimoer.benchmarks.encode import bench_encode, bench_encode_arms
    from unimoer.model.backbone import resolve_device

    bench = bench_encode_arms if arms else bench_encode
    bench(
        Console(),
        resolve_device(device),
        base=base,
        layers=layers,
        rank=rank,
        texts=texts,
        pairs=pairs,
    )


@app.command("latency")
def latency(
    base: Base = "embedded:smollm2-135m",
    layers: Layers = 12,
    rank: Rank = 8,
    texts: Annotated[int, typer.Option(min=8, help="Queries.")] = 24,
    pairs: Pairs = 7,
    peer: Annotated[bool, typer.Option("--peer", help="Against sentence-transformers instead.")] = False,
    device: Device = "auto",
) -> None:
    """One query at a time, as a search box sends them: routed experts against one LoRA that is merged."""
    from unimoer.benchmarks.encode import bench_encode, bench_encode_arms
    from unimoer.model.backbone import resolve_device

    bench = bench_encode if peer else bench_encode_arms
    bench(
        Console(),
        resolve_device(device),
        base=base,
        layers=layers,
        rank=rank,
        texts=texts,
        pairs=pairs,
        one_by_one=True,
    )


@app.command("rerank")
def rerank(
    base: Base = "embedded:smollm2-135m",
    layers: Layers = 12,
    rank: Rank = 8,
    domain: Annotated[str, typer.Option(help="An embedded domain: hpo is short, attack long.")] = "hpo",
    documents: Annotated[int, typer.Option(min=2, help="Documents of the query.")] = 50,
    pairs: Pairs = 7,
    device: Device = "auto",
) -> None:
    """Documents per second of one query, computed once for all, against whole prompts in transformers."""
    from unimoer.benchmarks.rerank import bench_rerank
    from unimoer.model.backbone import resolve_device

    bench_rerank(
        Console(),
        resolve_device(device),
        base=base,
        layers=layers,
        rank=rank,
        domain=domain,
        documents=documents,
        pairs=pairs,
    )


@app.command("memory")
def memory(
    base: Base = "embedded:smollm2-135m",
    rows: Annotated[int, typer.Option(min=1, help="Texts a batch.")] = 16,
    length: Annotated[int, typer.Option(min=4, help="Tokens a text.")] = 64,
    pairs: Pairs = 5,
    serving: Annotated[str | None, typer.Option(help="Servers instead: this model's, one against two.")] = None,
) -> None:
    """Memory of one model with three routed experts against two separate models."""
    from unimoer.benchmarks.memory import bench_memory
    from unimoer.benchmarks.serving_memory import bench_serving_memory

    if serving is not None:
        bench_serving_memory(Console(), model=serving, pairs=pairs)
        return
    bench_memory(Console(), base=base, rows=rows, length=length, pairs=pairs)


@app.command("scale")
def scale(
    passages: Annotated[int, typer.Option(min=1000, help="Passages of the synthetic corpus.")] = 100_000,
    queries: Annotated[int, typer.Option(min=1, help="Queries to mine and search for.")] = 1000,
    encode: Annotated[int, typer.Option(min=1, help="Passages to encode.")] = 10_000,
    base: Annotated[str, typer.Option(help="The model that encodes; `random` makes a very small one.")] = "random",
    layers: Annotated[int | None, typer.Option(min=1, help="Decoder layers to keep.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the files lie meanwhile.")] = None,
) -> None:
    """Memory and time of indexing, mining and encoding a large corpus."""
    from unimoer.benchmarks.scale import bench_scale

    bench_scale(Console(), passages=passages, queries=queries, encode=encode, base=base, layers=layers, folder=folder)


@app.command("serve")
def serve(
    model: Annotated[str, typer.Argument(help="A released model, a run, or a saved folder.")] = "smollm2-135m-search",
    clients: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 16,
    requests: Annotated[int, typer.Option(min=16, help="Requests of each kind in each turn.")] = 96,
    pairs: Pairs = 5,
    minutes: Annotated[float, typer.Option(min=0, help="Of mixed load at the end, every answer checked.")] = 0,
    device: Device = "auto",
) -> None:
    """Texts per second of the server on loopback against the library's, and its latencies."""
    from unimoer.benchmarks.serve import bench_serve

    bench_serve(Console(), model=model, device=device, clients=clients, requests=requests, pairs=pairs, minutes=minutes)
