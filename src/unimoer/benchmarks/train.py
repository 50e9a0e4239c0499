"""Training speed against PEFT's LoRA: same base, batch, ranks, precision, loss and optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from unimoer.benchmarks.pairs import Ratio, alternate, report
from unimoer.config import ALL_PROJECTIONS, AdapterConfig, ModelConfig, TaskHeadConfig
from unimoer.errors import UserError
from unimoer.model.backbone import load_backbone, resolve_dtype
from unimoer.model.heads import pool
from unimoer.model.unified import UnifiedModel
from unimoer.types import TokenBatch


def optimizer_step(parameters: list[nn.Parameter], embed: Callable[[], Tensor]) -> Callable[[], None]:
    """One optimizer step: the first half of the rows are queries, the second half their documents."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        vectors = F.normalize(embed(), dim=-1)
        middle = len(vectors) // 2
        logits = vectors[:middle] @ vectors[middle:].t() / 0.05
        F.cross_entropy(logits, torch.arange(middle, device=logits.device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def random_batch(model: UnifiedModel, rows: int, length: int) -> TokenBatch:
    """Words of the model's own vocabulary, without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(10_000, len(model.tokenizer)), (rows, length), generator=generator)
    return TokenBatch(ids, torch.ones_like(ids), torch.arange(length).expand(rows, -1)).to(str(model.device))


def bench_train(
    console: Console, device: torch.device, *, base: str, layers: int, rows: int, length: int, rank: int, pairs: int
) -> Ratio:
    """Tokens per second of one training step; the peer is PEFT with its defaults.

    Raises:
        UserError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("bench train: the peer is missing; pip install 'unimoer[bench]'") from None
    config = ModelConfig(
        base=base,
        layers=layers,
        adapter=AdapterConfig(rank=rank, alpha=2 * rank),
        embedding=TaskHeadConfig(pooling="mean"),
    )
    ours = UnifiedModel(config, device).train()
    batch = random_batch(ours, rows, length)
    ids, mask = batch.input_ids, batch.attention_mask

    def peft_step(attention: str, cast: bool) -> Callable[[], None]:
        model, _ = load_backbone(config, device)
        model.set_attn_implementation(attention)
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(ALL_PROJECTIONS))
        wrapped = get_peft_model(model.base_model, settings, autocast_adapter_dtype=cast)
        wrapped.train()
        trainable = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]

        def embed() -> Tensor:
            states = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return pool(states, mask, "mean")

        return optimizer_step(trainable, embed)

    adapter = [parameter for name, parameter in ours.trainable().items() if name.startswith("decoder.")]
    contenders = {
        "unimoer": optimizer_step(adapter, lambda: pool(ours.decoder(batch), mask, "mean")),
        "PEFT, defaults": peft_step("sdpa", True),
        "PEFT, eager attention": peft_step("eager", True),
        "PEFT, eager attention, adapters in the base's precision": peft_step("eager", False),
    }
    seconds = alternate(contenders, device=device, pairs=pairs)
    precision = str(resolve_dtype("auto", device)).removeprefix("torch.")
    title = f"training step, {rows} x {length} tokens, {layers} layers of {base}, rank {rank}, {precision}, {device}"
    extra = {"bench": "train", "rows": rows, "length": length, "layers": layers, "rank": rank, "dtype": precision}
    return report(console, title, "tokens", rows * length, seconds, ours="unimoer", peer="PEFT, defaults", extra=extra)
