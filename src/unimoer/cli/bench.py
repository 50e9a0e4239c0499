"""`unimoer bench`: speed against the peers, as ratios measured in one process."""

from __future__ import annotations

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
    device: Device = "auto",
) -> None:
    """Tokens per second of a training step against PEFT's LoRA."""
    from unimoer.benchmarks.train import bench_train
    from unimoer.model.backbone import resolve_device

    bench_train(
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
    device: Device = "auto",
) -> None:
    """Texts per second against sentence-transformers with the adapter merged."""
    from unimoer.benchmarks.encode import bench_encode
    from unimoer.model.backbone import resolve_device

    bench_encode(Console(), resolve_device(device), base=base, layers=layers, rank=rank, texts=texts, pairs=pairs)
