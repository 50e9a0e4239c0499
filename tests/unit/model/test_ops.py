"""Every hand-written operation against the same formula in plain autograd: outputs and all gradients.

Float32 agrees to 1e-5 of the tensor's size, a few roundings in another order. Bfloat16 keeps 8 bits, so each rounding
costs up to 4e-3; the reference is computed in float32 from the same bfloat16 inputs, and a few roundings fit in 2e-2.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.model import ops

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def agree(found: Tensor, expected: Tensor, ours: list[Tensor], twins: list[Tensor], tolerance: float) -> None:
    """Same outputs, and the same gradient of a random sum for every input; `twins` are float32 copies of `ours`."""
    assert found.shape == expected.shape
    assert tiny.relative(found, expected) < tolerance
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    found_gradients = torch.autograd.grad((found.float() * weights).sum(), ours)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), twins)
    for index, (one, other) in enumerate(zip(found_gradients, expected_gradients, strict=True)):
        assert one.shape == other.shape, index
        assert one.dtype == ours[index].dtype, index
        assert tiny.relative(one, other) < 2 * tolerance, index


def twin(tensor: Tensor) -> Tensor:
    return tensor.detach().float().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = random(3, 5, 16, dtype=dtype), random(16, dtype=dtype)
    x_twin, weight_twin = twin(x), twin(weight)
    expected = x_twin * torch.rsqrt(x_twin.pow(2).mean(-1, keepdim=True) + 1e-3) * weight_twin
    agree(ops.rms_norm(x, weight, 1e-3), expected, [x, weight], [x_twin, weight_twin], TOLERANCE[dtype])


def test_rms_norm_survives_zeros_and_large_values() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = ops.rms_norm(x, torch.ones(4), 1e-6)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert torch.isfinite(x.grad).all()
    large = torch.full((1, 64), 1e15)
    assert torch.allclose(ops.rms_norm(large, torch.ones(64), 1e-6), torch.ones(1, 64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    gate_up = random(2, 3, 20, dtype=dtype)
    gate_up_twin = twin(gate_up)
    gate, up = gate_up_twin.chunk(2, dim=-1)
    agree(ops.swiglu(gate_up), F.silu(gate) * up, [gate_up], [gate_up_twin], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_split_heads(dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    """Against the formula of transformers, x * cos + rotate_half(x) * sin on queries and keys, values untouched."""
    qkv = random(2, 6, (heads + 2 * kv_heads) * 8, dtype=dtype)
    qkv_twin = twin(qkv)
    angles = torch.arange(12).view(2, 6, 1, 1) * torch.tensor([1.0, 0.3, 0.1, 0.01])
    cos, sin = (1.7 * angles.cos()).to(dtype), (1.7 * angles.sin()).to(dtype)
    wide_cos, wide_sin = (torch.cat([part, part], -1).float() for part in (cos, sin))
    query, key, value = qkv_twin.view(2, 6, -1, 8).split([heads, kv_heads, kv_heads], dim=2)
    rotated = [x * wide_cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * wide_sin for x in (query, key)]
    expected = torch.cat([part.transpose(1, 2).flatten(1) for part in (*rotated, value)], 1)
    found = ops.split_heads(qkv, cos, sin, heads, kv_heads)
    assert found[0].shape == (2, kv_heads, heads // kv_heads, 6, 8)
    assert found[1].shape == found[2].shape == (2, kv_heads, 6, 8)
    agree(torch.cat([part.flatten(1) for part in found], 1), expected, [qkv], [qkv_twin], TOLERANCE[dtype])


def additive_mask(kind: str, batch: int, length: int) -> Tensor:
    allowed = torch.ones(batch, 1, length, length, dtype=torch.bool)
    if kind != "full":
        allowed = allowed.tril()
    if kind == "left padded":
        # The first two queries of row 0 see no key at all.
        allowed[0, :, :, :2] = False
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["full", "causal", "left padded"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("path", ["eager", "blocked"])
def test_attention(
    dtype: torch.dtype, kind: str, heads: int, kv_heads: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "blocked":
        monkeypatch.setattr(ops, "EAGER_ATTENTION_MAX_LENGTH", 0)
    query = random(2, kv_heads, heads // kv_heads, 7, 8, dtype=dtype)
    key, value = (random(2, kv_heads, 7, 8, dtype=dtype, seed=seed) for seed in (1, 2))
    mask, twins = additive_mask(kind, 2, 7), [twin(tensor) for tensor in (query, key, value)]
    wide = [twins[0].flatten(1, 2), *(tensor.repeat_interleave(heads // kv_heads, dim=1) for tensor in twins[1:])]
    scores = wide[0] @ wide[1].transpose(-1, -2) * 0.3 + mask
    expected = (scores.softmax(-1) @ wide[2]).transpose(1, 2).flatten(2)
    found = ops.attention(query, key, value, mask, 0.3)
    if kind == "left padded":
        # What a query without keys returns is nobody's business, as long as it is a number and passes none back.
        assert torch.isfinite(found).all()
        seen = torch.ones(2, 7, 1)
        seen[0, :2] = 0
        found, expected = found * seen, expected * seen
    agree(found, expected, [query, key, value], twins, TOLERANCE[dtype])


def test_both_attention_paths_give_the_same_for_rows_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    query = random(1, 2, 1, 5, 4)
    key, value = (random(1, 2, 5, 4, seed=seed) for seed in (1, 2))
    mask = torch.full((1, 1, 5, 5), torch.finfo(torch.float32).min)
    eager = ops.attention(query, key, value, mask, 0.5)
    monkeypatch.setattr(ops, "EAGER_ATTENTION_MAX_LENGTH", 0)
    blocked = ops.attention(query, key, value, mask, 0.5)
    assert tiny.relative(eager, blocked) < 1e-6
    assert torch.allclose(eager, value.mean(2).flatten(1).expand(1, 5, 8), atol=1e-6)


R4 = slice(0, 4)
LAYOUTS: dict[str, list[ops.Block]] = {
    "one projection": [ops.Block(0, slice(0, 9), slice(0, 9), R4)],
    "first and last of three": [
        ops.Block(0, slice(0, 4), slice(0, 4), R4),
        ops.Block(0, slice(4, 7), slice(6, 9), slice(4, 8)),
    ],
    "two experts on two of three": [
        ops.Block(0, slice(0, 4), slice(0, 4), R4),
        ops.Block(0, slice(4, 7), slice(6, 9), slice(4, 8)),
        ops.Block(1, slice(0, 4), slice(0, 4), slice(8, 10)),
        ops.Block(1, slice(4, 7), slice(6, 9), slice(10, 12)),
    ],
}


def factors(layout: list[ops.Block]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """A `[P * r, d_in]` and B `[rows, r]` of every expert, and a scale for every column."""
    a, b = [], []
    for expert in range(1 + max(block.expert for block in layout)):
        own = [block for block in layout if block.expert == expert]
        rank = own[0].columns.stop - own[0].columns.start
        a.append(random(len(own) * rank, 6, seed=10 + expert))
        b.append(random(max(block.b_rows.stop for block in own), rank, seed=20 + expert))
    return a, b, torch.rand(layout[-1].columns.stop, generator=torch.Generator().manual_seed(1)) + 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("routing", [None, 5, 1], ids=["unrouted", "by token", "by text"])
@pytest.mark.parametrize(("bias", "residual", "dropped"), list(product([False, True], repeat=3)))
def test_lora_linear(
    dtype: torch.dtype, layout: str, routing: int | None, bias: bool, residual: bool, dropped: bool
) -> None:
    """All ways to call it, with gradients of everything that can have one, the frozen weight included."""
    places = LAYOUTS[layout]
    a, b, scale = factors(places)
    x, weight = random(2, 5, 6, dtype=dtype), random(9, 6, dtype=dtype)
    options: dict[str, Tensor] = {}
    if bias:
        options["bias"] = random(9, dtype=dtype).detach()
    if residual:
        options["residual"] = random(2, 5, 9, dtype=dtype, seed=1)
    if routing is not None:
        options["routing"] = random(2, routing, len(scale), seed=2)
    if dropped:
        options["x_adapter"] = random(2, 5, 6, dtype=dtype, seed=3)
    inputs = [x, weight, *a, *b, *(tensor for name, tensor in options.items() if name != "bias")]
    found = ops.lora_linear(x, weight, a, b, scale, places, **options)

    twins = [twin(tensor) for tensor in inputs]
    x_twin, weight_twin, *rest = twins
    a_twins, b_twins = rest[: len(a)], rest[len(a) : 2 * len(a)]
    named = dict(zip([name for name in options if name != "bias"], rest[2 * len(a) :], strict=True))
    hidden = named.get("x_adapter", x_twin) @ torch.cat(a_twins).t() * named.get("routing", torch.ones(()))
    expected = x_twin @ weight_twin.t()
    for block in places:
        update = hidden[..., block.columns] @ (b_twins[block.expert][block.b_rows] * scale[block.columns]).t()
        expected = expected + F.pad(update, (block.out_rows.start, 9 - block.out_rows.stop))
    if bias:
        expected = expected + options["bias"].float()
    expected = expected + named.get("residual", torch.zeros(()))
    agree(found, expected, inputs, twins, TOLERANCE[dtype])


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight, a, b = random(3, 6), random(9, 6).detach(), random(4, 6), random(9, 4)
    layout = LAYOUTS["one projection"]
    ops.lora_linear(x, weight, [a], [b], torch.ones(4), layout).sum().backward()
    assert weight.grad is None
    assert a.grad is not None
    weight.requires_grad_(True)
    ops.lora_linear(x, weight, [a], [b], torch.ones(4), layout).sum().backward()
    assert torch.allclose(weight.grad, x.detach().sum(0).expand(9, 6), atol=1e-6)


@pytest.mark.parametrize("frozen", ["a", "b"])
def test_a_frozen_expert_gets_no_gradient_and_changes_none(frozen: str) -> None:
    layout = LAYOUTS["two experts on two of three"]
    gradients = []
    for freeze in (False, True):
        a, b, scale = factors(layout)
        (a if frozen == "a" else b)[0].requires_grad_(not freeze)
        x = random(2, 5, 6)
        ops.lora_linear(x, random(9, 6).detach(), a, b, scale, layout).square().sum().backward()
        gradients.append([x.grad, *(tensor.grad for tensor in (*a, *b))])
    place = 1 if frozen == "a" else 3
    assert gradients[1][place] is None
    for index, (found, expected) in enumerate(zip(*gradients[::-1], strict=True)):
        assert index == place or torch.equal(found, expected)
