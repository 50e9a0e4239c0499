"""Memory of one model with routed experts against two separate full models of the same base."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig, Qwen3Config

from unimoer.config import AdapterConfig, ModelConfig
from unimoer.config.router import SparsegenConfig
from unimoer.errors import UserError
from unimoer.evaluation.serving import weight_bytes
from unimoer.model.backbone import resolve_dtype
from unimoer.model.budget import BaseShape, router_parameters, shape_of
from unimoer.model.unified import UnifiedModel
from unimoer.runtime import release_freed
from unimoer.types import Task, TokenBatch

EXPERTS = {"embedding": 8, "reranking": 8, "shared": 16}
"""Ranks of the proposal."""

ARITHMETIC: dict[str, PreTrainedConfig] = {
    "Qwen3-0.6B": Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "Qwen3-4B": Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "Mistral-7B": MistralConfig(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Published architectures whose size is worked out rather than measured."""


def routed_config(base: str) -> ModelConfig:
    adapter = AdapterConfig(rank=32, alpha=64, experts=dict(EXPERTS), router=SparsegenConfig())
    return ModelConfig(base=base, adapter=adapter)


def plain_config(base: str, layers: int | None = None) -> ModelConfig:
    """A full model: its adapter, of one rank on one projection, is merged."""
    return ModelConfig(base=base, layers=layers, adapter=AdapterConfig(rank=1, alpha=1, targets=("q_proj",)))


def _status(field: str) -> int:
    """A field of this process's memory in bytes. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise UserError("bench memory: needs Linux; /proc/self/status has no " + field)


@torch.inference_mode()
def _work(models: list[UnifiedModel], batch: TokenBatch) -> None:
    models[0].embed(batch)
    models[1].score(batch)


def _child(system: str, base: str, rows: int, length: int) -> dict[str, int]:
    """Load one system, embed and rerank with it, and say what it took."""
    device = torch.device("cpu")
    ids = torch.randint(100, 10_000, (rows, length))
    batch = TokenBatch(ids, torch.ones_like(ids), torch.arange(length).expand(rows, -1))
    # Libraries and the kernels that they compile come with the first pass; they are part of the runtime.
    _work([UnifiedModel(plain_config(base, layers=1), device)] * 2, batch)
    gc.collect()
    release_freed()
    before = _status("VmRSS")
    if system == "one":
        models = [UnifiedModel(routed_config(base), device).for_inference()] * 2
    else:
        models = [UnifiedModel(plain_config(base), device).for_inference() for _ in Task]
    gc.collect()
    release_freed()
    # From here on the high-water mark is that of the work, not of reading the weights.
    Path("/proc/self/clear_refs").write_text("5")
    _work(models, batch)
    return {"weights": weight_bytes(models), "peak": _status("VmHWM") - before, "runtime": before}


def _measure(system: str, base: str, rows: int, length: int) -> dict[str, int]:
    """In a process of its own: memory that one system has freed is not the other's."""
    code = (
        "from unimoer.runtime import favour_memory; favour_memory(); "
        f"from unimoer.benchmarks import memory; memory.print_child({system!r}, {base!r}, {rows}, {length})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"bench memory: the measured process failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_child(system: str, base: str, rows: int, length: int) -> None:
    print(json.dumps(_child(system, base, rows, length)))  # noqa: T201


def _arithmetic(architecture: PreTrainedConfig) -> tuple[float, float]:
    """Bytes of the base, and of experts (both bfloat16) and routers (float32)."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(architecture)
    base = sum(parameter.numel() for parameter in model.parameters())
    shape: BaseShape = shape_of(model, AdapterConfig().targets, architecture.num_hidden_layers)
    adapters = sum(EXPERTS.values()) * shape.layers * shape.rank_cost
    return 2.0 * base, 2.0 * adapters + 4.0 * router_parameters(SparsegenConfig(), len(EXPERTS), shape)


def bench_memory(console: Console, *, base: str, rows: int, length: int, pairs: int) -> dict[str, Any]:
    """Weights and peak of both systems in alternating fresh processes; a table, and one JSON object as the last line.

    The peak is the largest resident size while embedding and then reranking one batch, less what the process held
    after the same work with a single layer, and after giving that back: the interpreter, the libraries and the kernels
    that they compile are the same for both, and larger than a small model. Freed memory goes back to the system at
    once, in both: what is measured is what is in use.
    """
    runs = [(_measure("one", base, rows, length), _measure("two", base, rows, length)) for _ in range(pairs)]
    weights = runs[0][0]["weights"] / runs[0][1]["weights"]
    peaks = sorted(one["peak"] / two["peak"] for one, two in runs)
    table = Table(title=f"one model with three experts against two models, {rows} x {length} tokens")
    for column in ("base", "", "one model", "two models", "share"):
        table.add_column(column, justify="left" if column in ("base", "") else "right")

    def row(name: str, what: str, one: float, two: float, share: str) -> None:
        table.add_row(name, what, f"{one / 2**20:,.0f} MiB", f"{two / 2**20:,.0f} MiB", share)

    first = runs[0]
    row(base, "weights", first[0]["weights"], first[1]["weights"], f"{weights:.1%}")
    middle = peaks[len(peaks) // 2]
    spread = f"{middle:.1%}  ({peaks[0]:.1%} - {peaks[-1]:.1%})"
    row("", "peak while working", first[0]["peak"], first[1]["peak"], spread)
    arithmetic = {}
    for name, architecture in ARITHMETIC.items():
        size, extra = _arithmetic(architecture)
        arithmetic[name] = (size + extra) / (2 * size)
        row(name, "weights, worked out", size + extra, 2 * size, f"{arithmetic[name]:.1%}")
    console.print(table)
    line = {
        "ratio": round(middle, 4),
        "low": round(peaks[0], 4),
        "high": round(peaks[-1], 4),
        "pairs": pairs,
        "weights": round(weights, 4),
        "arithmetic": {name: round(share, 4) for name, share in arithmetic.items()},
        "bench": "memory",
        "base": base,
        "dtype": str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch."),
    }
    print(json.dumps(line))  # noqa: T201
    return line
