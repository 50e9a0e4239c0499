"""`unimoer info [RUN]`: versions, hardware and precision; or what a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def info(
    run: Annotated[Path | None, typer.Argument(help="Run folder, or a checkpoint folder.")] = None,
) -> None:
    """Show the environment, or describe a run and verify its golden outputs."""
    console = Console(markup=False, emoji=False)
    table = Table(show_header=False, box=None)
    for key, value in (_environment() if run is None else _run(run)).items():
        table.add_row(key, str(value))
    console.print(table)


def _environment() -> dict[str, Any]:
    import torch

    from unimoer.assets import ASSETS, cache_dir, is_cached
    from unimoer.model.backbone import resolve_device, resolve_dtype
    from unimoer.provenance import environment

    device = resolve_device("auto")
    found = environment(str(device))
    cached = sum(is_cached(asset) for asset in ASSETS.values())
    return {
        **found.packages,
        "python": found.python,
        "processor": f"{found.hardware.cpu}, {found.hardware.cores} cores",
        "memory": f"{found.hardware.memory_gb} GB",
        "device": f"{device}, {found.hardware.gpu or f'{torch.get_num_threads()} threads'}",
        "precision of the frozen base": str(resolve_dtype("auto", device)).removeprefix("torch."),
        "embedded assets": f"{cached} of {len(ASSETS)} in {cache_dir()}",
    }


def _run(folder: Path) -> dict[str, Any]:
    import torch

    from unimoer.files import read_json
    from unimoer.model.checkpoint import load_model
    from unimoer.runs.folder import checkpoint_folder

    checkpoint = checkpoint_folder(folder)
    model = load_model(checkpoint, torch.device("cpu"))
    description = read_json(checkpoint / "unimoer.json")
    settings = model.config
    adapter = settings.adapter
    routing = {}
    if adapter.router is not None:
        ranks = (f"{name} {rank}" for name, rank in (adapter.experts or {}).items())
        moved = description.get("router_moved")
        routing = {"experts": ", ".join(ranks), "router": adapter.router.model_dump_json(exclude_defaults=False)}
        if moved is not None:
            routing["routers moved"] = f"{moved:.0%} of the size that their parameters started with"
    return {
        "checkpoint": checkpoint,
        "base": f"{settings.base}, {settings.layers or 'all'} layers, fingerprint {description['base_fingerprint']}",
        "adapter": f"rank {settings.adapter.rank}, alpha {settings.adapter.alpha:g} on "
        + ", ".join(settings.adapter.targets),
        **routing,
        "trainable parameters": f"{sum(p.numel() for p in model.trainable().values()):,}",
        "embedding": f"{settings.embedding.pooling} pooling",
        "reranking": f"{settings.reranking.head} head, {settings.reranking.pooling} pooling",
        "a query's documents": f"with the query each: {model.reads_apart}"
        if model.reads_apart
        else "behind the query, which is computed once for all",
        "golden outputs": "verified",
    }
