"""Training speed of routed experts: against one LoRA of the same total rank, and against a loop over the experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from unimoer.benchmarks.pairs import Ratio, alternate, report
from unimoer.benchmarks.train import optimizer_step, random_batch
from unimoer.config import AdapterConfig, ModelConfig, TaskHeadConfig
from unimoer.errors import UserError
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.backbone import resolve_dtype
from unimoer.model.routing import Routing
from unimoer.model.unified import UnifiedModel


class LoopOverExperts(MoELoRALinear):
    """The straightforward way, as the peer: one LoRA after the other, each output times its weight, all added up."""

    def forward(self, x: Tensor, routing: Routing | None = None, residual: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        for index, expert in enumerate(self.a):
            update = torch.zeros_like(y)
            for name in self.targets:
                a, b, scale = self.lora(name, expert)
                update[..., self.rows(name)] = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scale
            if routing is not None and routing.weights is not None:
                update = update * (routing.weights[..., index : index + 1] * len(self.a)).to(x.dtype)
            y = y + update
        return y if residual is None else y + residual


def shares(rank: int) -> dict[str, int]:
    """Ranks of three experts, 1:1:2.

    Raises:
        UserError: they do not add up to the rank of the single LoRA.
    """
    if rank % 4:
        raise UserError(f"--rank {rank}: three experts share it as 1:1:2, so with --arms it must be a multiple of 4")
    return {"embedding": rank // 4, "reranking": rank // 4, "shared": rank // 2}


def stirred(config: ModelConfig, device: torch.device) -> UnifiedModel:
    """A model whose B is not zero: a merge of nothing would prove nothing."""
    model = UnifiedModel(config, device)
    torch.manual_seed(0)
    for name, parameter in model.trainable().items():
        if ".b." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def _as_loop(model: UnifiedModel) -> UnifiedModel:
    for adapter in model.adapters().values():
        adapter.__class__ = LoopOverExperts
    return model


def bench_arms(
    console: Console, device: torch.device, *, base: str, layers: int, rows: int, length: int, rank: int, pairs: int
) -> Ratio:
    """Tokens per second of a training step, all systems in turn in one process.

    The rank is that of the single LoRA; three experts share it (1:1:2) and the routers come on top.
    """
    experts = shares(rank)

    def build(granularity: str | None) -> UnifiedModel:
        adapter: dict[str, object] = {"rank": rank, "alpha": 2 * rank}
        if granularity is not None:
            adapter["experts"] = experts
            adapter["router"] = {"type": "sparsegen", "granularity": granularity}
        config = ModelConfig(
            base=base,
            layers=layers,
            adapter=AdapterConfig.model_validate(adapter),
            embedding=TaskHeadConfig(pooling="mean"),
        )
        return UnifiedModel(config, device).train()

    def step(model: UnifiedModel) -> Callable[[], None]:
        batch = random_batch(model, rows, length)
        trained = [parameter for name, parameter in model.trainable().items() if name.startswith("decoder.")]
        return optimizer_step(trained, lambda: model.embed(batch))

    contenders = {
        "one LoRA": step(build(None)),
        "routed, sequence": step(build("sequence")),
        "routed, causal": step(build("causal")),
        "routed, token": step(build("token")),
        "routed, sequence, loop over experts": step(_as_loop(build("sequence"))),
        "routed, token, loop over experts": step(_as_loop(build("token"))),
    }
    seconds = alternate(contenders, device=device, pairs=pairs)
    precision = str(resolve_dtype("auto", device)).removeprefix("torch.")
    title = f"training step, {rows} x {length} tokens, {layers} layers of {base}, rank {rank}, {precision}, {device}"
    extra: dict[str, object] = {
        "bench": "train --arms",
        "rows": rows,
        "length": length,
        "layers": layers,
        "rank": rank,
        "dtype": precision,
    }
    names = {
        "sequence to one LoRA": ("routed, sequence", "one LoRA"),
        "causal to one LoRA": ("routed, causal", "one LoRA"),
        "token to one LoRA": ("routed, token", "one LoRA"),
        "sequence to its loop": ("routed, sequence", "routed, sequence, loop over experts"),
        "token to its loop": ("routed, token", "routed, token, loop over experts"),
    }
    extra["ratios"] = {
        label: Ratio(tuple(b / a for a, b in zip(seconds[ours], seconds[peer], strict=True))).to_json()
        for label, (ours, peer) in names.items()
    }
    return report(
        console,
        title,
        "tokens",
        rows * length,
        seconds,
        ours="routed, sequence",
        peer="one LoRA",
        extra=extra,
    )
