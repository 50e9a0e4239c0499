"""With one expert, our adapter is PEFT's LoRA: same A, same B, same outputs, same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import tiny
from unimoer.config import ALL_PROJECTIONS, AdapterConfig
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.decoder import FusedDecoder
from unimoer.types import TokenBatch

LAYER_TOLERANCE = 1e-6
"""Of one adapted projection: two matrix products, some ten float32 roundings of 6e-8 each."""
MODEL_TOLERANCE = 5e-6
"""Of three layers: attention and norms sum in another order than those of transformers, with or without an adapter."""
Bases = Callable[[str], Path]


def peft_twin(folder: Path, decoder: nn.Module, rank: int, targets: tuple[str, ...]) -> peft.PeftModel:
    """PEFT's LoRA on the same base, holding the same A and B."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(targets))
    twin = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, module, (a, b) in pairs(decoder, twin):
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b)
            assert name in targets
    return twin


def pairs(decoder: nn.Module, twin: nn.Module) -> list[tuple[str, nn.Module, tuple[Tensor, Tensor]]]:
    """Projection, PEFT's layer, and our A and B of the same place."""
    assert isinstance(decoder, FusedDecoder)
    body = twin.get_base_model().model
    found = []
    for ours, theirs in zip(decoder.layers, body.layers, strict=True):
        parents = {"qkv": theirs.self_attn, "o": theirs.self_attn, "gate_up": theirs.mlp, "down": theirs.mlp}
        for attribute, parent in parents.items():
            module = getattr(ours, attribute)
            found += [(name, getattr(parent, name), module.lora(name, "shared")[:2]) for name in module.targets]
    return found


def gradients(decoder: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Our gradients of A and B in the order of `pairs`: the same views, of the gradients."""
    found = []
    for module in (module for module in decoder.modules() if isinstance(module, MoELoRALinear)):
        for parameter in (*module.a.values(), *module.b.values()):
            parameter.data = parameter.grad
        found += [module.lora(name, "shared")[:2] for name in module.targets]
    return found


def states(twin: peft.PeftModel, batch: TokenBatch) -> Tensor:
    body = twin.get_base_model().model
    return body(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("targets", [ALL_PROJECTIONS, ("q_proj", "v_proj"), ("v_proj", "up_proj", "down_proj")])
def test_outputs_and_gradients_are_those_of_peft(family: str, targets: tuple[str, ...], bases: Bases) -> None:
    adapter = {"rank": 4, "alpha": 8.0, "targets": targets}
    decoder = tiny.build(bases(family), noise=0.1, adapter=adapter).train().decoder
    twin = peft_twin(bases(family), decoder, 4, targets)
    batch = tiny.batch(tiny.ids([9, 4, 6]))
    mask = batch.attention_mask.bool()
    weights = torch.randn(19, 32, generator=torch.Generator().manual_seed(3))
    found, expected = decoder(batch)[mask], states(twin, batch)[mask]
    assert tiny.relative(found, expected) < MODEL_TOLERANCE
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs = pairs(decoder, twin)
    ours = gradients(decoder)
    assert len(ours) == len(theirs) == 3 * len(targets)
    for (name, module, _), (grad_a, grad_b) in zip(theirs, ours, strict=True):
        assert tiny.relative(grad_a, module.lora_A["default"].weight.grad) < 2 * MODEL_TOLERANCE, name
        assert tiny.relative(grad_b, module.lora_B["default"].weight.grad) < 2 * MODEL_TOLERANCE, name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", [("first",), ("second",), ("first", "second")])
def test_one_projection_alone_agrees_to_rounding(bias: bool, targets: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    linears = {"first": nn.Linear(48, 40, bias=bias), "second": nn.Linear(48, 24, bias=bias)}
    fused = MoELoRALinear(linears, AdapterConfig(rank=6, alpha=3.0, targets=targets), {"shared": 6})
    tiny.stir(fused, 0.3)
    x, weights = torch.randn(5, 7, 48, requires_grad=True), torch.randn(5, 7, 64)
    y = fused(x)
    (y * weights).sum().backward()

    config = peft.LoraConfig(r=6, lora_alpha=3, target_modules=list(targets))
    holder = peft.get_peft_model(nn.ModuleDict(linears), config).base_model.model
    expected = []
    x_twin = x.detach().clone().requires_grad_()
    with torch.no_grad():
        for name in targets:
            a, b, _ = fused.lora(name, "shared")
            holder[name].lora_A["default"].weight.copy_(a)
            holder[name].lora_B["default"].weight.copy_(b)
    expected = torch.cat([holder[name](x_twin) for name in linears], dim=-1)
    (expected * weights).sum().backward()

    assert tiny.relative(y, expected) < LAYER_TOLERANCE
    assert tiny.relative(x.grad, x_twin.grad) < LAYER_TOLERANCE
    for name, (grad_a, grad_b) in zip(targets, gradients(fused), strict=True):
        assert tiny.relative(grad_a, holder[name].lora_A["default"].weight.grad) < LAYER_TOLERANCE
        assert tiny.relative(grad_b, holder[name].lora_B["default"].weight.grad) < LAYER_TOLERANCE
