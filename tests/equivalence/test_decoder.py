"""Our forward pass against that of `transformers`, in float32.

The tolerance of 1e-5, relative to the size of the tensor, is rounding: float32 carries 6e-8, and each of some thirty
sums in a row, taken in another order, adds a little. A wrong mask, rotation or norm is off by 1e-2 and more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import tiny
from unimoer.config import AdapterConfig
from unimoer.errors import UserError
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.decoder import FusedDecoder, HostedDecoder, build_decoder
from unimoer.types import TokenBatch

TOLERANCE = 1e-5
Bases = Callable[[str], Path]


def transformers_model(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def transformers_states(model: nn.Module, batch: TokenBatch) -> Tensor:
    return model.base_model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state


def real(states: Tensor, batch: TokenBatch) -> Tensor:
    """States of real tokens, row by row: `[tokens, d]`."""
    return states[batch.attention_mask.bool()]


def shifted(batch: TokenBatch, offset: int) -> TokenBatch:
    return TokenBatch(batch.input_ids, batch.attention_mask, batch.position_ids + offset)


@pytest.mark.parametrize("family", [*tiny.FUSED, *tiny.HOSTED])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("offset", [0, 37])
@torch.no_grad()
def test_outputs_are_those_of_transformers(family: str, padding: str, offset: int, bases: Bases) -> None:
    model = tiny.build(bases(family))
    assert isinstance(model.decoder, FusedDecoder if family in tiny.FUSED else HostedDecoder)
    batch = shifted(tiny.batch(tiny.ids([11, 3, 7, 1]), padding), offset)
    expected = real(transformers_states(transformers_model(bases(family)), batch), batch)
    assert tiny.relative(real(model.decoder(batch), batch), expected) < TOLERANCE


@torch.no_grad()
def test_long_sequences_take_the_blocked_kernel_and_agree_too(base: Path) -> None:
    batch = tiny.batch(tiny.ids([530, 514]), "left")
    expected = real(transformers_states(transformers_model(base), batch), batch)
    assert tiny.relative(real(tiny.build(base).decoder(batch), batch), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(family: str, bases: Bases) -> None:
    """To rounding it is the base (above); whatever its A is, it adds exact zeros."""
    batch = tiny.batch(tiny.ids([11, 3, 7]))
    one, other = (tiny.build(bases(family), seed=seed) for seed in (0, 1))
    assert torch.equal(one.decoder(batch), other.decoder(batch))
    first = {name: p for name, p in one.trainable().items() if ".a." in name}
    assert len(first) == (12 if family == "qwen3" else 21)
    assert not any(torch.equal(p, other.get_parameter(name)) for name, p in first.items())
    assert all(not p.any() for name, p in one.trainable().items() if ".b." in name)
    tiny.stir(one, 0.01)
    assert tiny.relative(one.decoder(batch), other.decoder(batch)) > 1e-3


@pytest.mark.parametrize("family", [*tiny.FUSED, "olmo2"])
def test_gradients_are_those_of_merged_weights_in_transformers(family: str, bases: Bases) -> None:
    """The reference knows no LoRA: it differentiates W + s B A, put in the place of W, with plain autograd."""
    model = tiny.build(bases(family), noise=0.1)
    batch = tiny.batch(tiny.ids([9, 4, 6]), "left")
    weights = torch.randn(19, 32, generator=torch.Generator().manual_seed(3))
    found = real(model.decoder(batch), batch)
    (found * weights).sum().backward()

    reference, twin = transformers_model(bases(family)).requires_grad_(False), copy.deepcopy(model.decoder)
    twin.zero_grad()
    merged = merged_weights(reference.base_model, twin)
    expected = torch.func.functional_call(
        reference.base_model,
        merged,
        kwargs={
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
            "use_cache": False,
        },
    ).last_hidden_state
    (real(expected, batch) * weights).sum().backward()

    assert tiny.relative(found, real(expected, batch)) < TOLERANCE
    trained = [name for name, parameter in twin.named_parameters() if parameter.requires_grad]
    assert len(trained) == 3 * (8 if family in tiny.FUSED else 14)
    for name in trained:
        assert tiny.relative(model.decoder.get_parameter(name).grad, twin.get_parameter(name).grad) < 2e-5, name
    assert all(p.grad is None for p in model.decoder.parameters() if not p.requires_grad)


def merged_weights(body: nn.Module, decoder: nn.Module) -> dict[str, Tensor]:
    """`W + s B A` of every adapted projection, by its name in transformers, differentiable in A and B of `decoder`."""
    places = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
    merged = {}
    for path, module in decoder.named_modules():
        if isinstance(module, MoELoRALinear):
            layer, _, last = path.removeprefix("body.").rpartition(".")
            for name in module.targets:
                inside = f"{layer}.{places[last]}.{name}" if last in places else f"{layer}.{name}"
                a, b, scale = module.lora(name, "shared")
                merged[f"{inside}.weight"] = body.get_parameter(f"{inside}.weight") + scale * b @ a
    return merged


@pytest.mark.parametrize("family", [*tiny.FUSED, *tiny.HOSTED])
@torch.no_grad()
def test_attention_is_causal(family: str, bases: Bases) -> None:
    decoder = tiny.build(bases(family), noise=0.1).decoder
    one, other = tiny.ids([8, 8])
    batch = tiny.batch([one, [*one[:-1], other[-1]], [one[0], *other[1:]]])
    states = decoder(batch)
    assert torch.equal(states[0, :-1], states[1, :-1])
    assert not torch.equal(states[0, -1], states[1, -1])
    # So a model pooled at its first token would give every text with the same first word the same vector.
    assert torch.equal(states[0, 0], states[2, 0])


@torch.no_grad()
def test_bidirectional_attention_sees_the_whole_text_and_no_padding(base: Path, bases: Bases) -> None:
    decoder = tiny.build(base).decoder
    one, other = tiny.ids([8, 8])
    states = decoder(tiny.batch([one, [*one[:-1], other[-1]]]), causal=False)
    assert not torch.allclose(states[0, 0], states[1, 0], atol=1e-3)
    for padding in ("left", "right"):
        padded = tiny.batch([one, one + other], padding)
        alone = decoder(tiny.batch([one]), causal=False)[0]
        assert tiny.relative(decoder(padded, causal=False)[0][padded.attention_mask[0].bool()], alone) < TOLERANCE
    with pytest.raises(UserError, match="fused families"):
        tiny.build(bases("olmo2")).decoder(tiny.batch([one]), causal=False)


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_gradient_checkpointing_recomputes_the_same(family: str, bases: Bases) -> None:
    """Dropout is on: recomputation must see the same random numbers."""
    gradients = []
    for checkpointing in (False, True):
        adapter = {"rank": 4, "dropout": 0.5}
        model = tiny.build(bases(family), noise=0.1, adapter=adapter, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(5)
        model.score(tiny.batch(tiny.ids([9, 4]))).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.trainable().items()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert torch.equal(gradient, recomputed[name]), name


def test_which_architectures_are_fused(bases: Bases) -> None:
    adapter = AdapterConfig(rank=2)
    for family in (*tiny.FUSED, *tiny.HOSTED):
        decoder = build_decoder(transformers_model(bases(family)), adapter)
        assert isinstance(decoder, FusedDecoder) == (family in tiny.FUSED), family
