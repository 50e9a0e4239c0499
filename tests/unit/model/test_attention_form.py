"""What CUDA's attention kernels are asked for: a form that is right everywhere, and one that they have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiny
from unimoer.model.decoder import attention_mask
from unimoer.model.ops import AttentionForm, attention, attention_form, fused_attention
from unimoer.model.unified import UnifiedModel
from unimoer.types import TokenBatch

LENGTHS = [7, 3, 9]
FULL, LEFT, RIGHT = (
    tiny.batch(tiny.ids([9, 9])),
    tiny.batch(tiny.ids(LENGTHS), "left"),
    tiny.batch(tiny.ids(LENGTHS), "right"),
)
CAUSAL, OPEN, MASKED = (
    {"masked": False, "causal": True},
    {"masked": False, "causal": False},
    {"masked": True, "causal": False},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "causal", "expected"),
    [
        (FULL, True, CAUSAL),
        (RIGHT, True, CAUSAL),
        (LEFT, True, MASKED),
        (FULL, False, OPEN),
        (RIGHT, False, MASKED),
        (LEFT, False, MASKED),
    ],
)
def test_a_mask_is_given_where_the_causal_rule_does_not_say_all(
    batch: TokenBatch, causal: bool, expected: dict[str, bool], dtype: torch.dtype
) -> None:
    """And key heads are shared where no mask is given, in half precision: flash attention is that kernel."""
    form = attention_form(batch.attention_mask, dtype, causal=causal)
    shared = not expected["masked"] and dtype is torch.bfloat16
    assert form == AttentionForm(**expected, shared=shared)


def heads(length: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (3, 2, 3, length, 8), (3, 2, length, 8), (3, 2, length, 8)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch", [LEFT, RIGHT], ids=["left", "right"])
def test_every_form_gives_what_the_mask_gives(batch: TokenBatch, causal: bool, dtype: torch.dtype) -> None:
    """Outputs of real tokens and all gradients, against materialised scores."""
    form = attention_form(batch.attention_mask, dtype, causal=causal)
    mask, real = attention_mask(batch, causal=causal), batch.attention_mask.bool()
    upstream = torch.randn(int(real.sum()), 48, generator=torch.Generator().manual_seed(9))
    results = []
    for chosen in (None, form):
        tensors = heads(9, dtype, 0)
        out = attention(*tensors, mask, 0.3) if chosen is None else fused(tensors, mask if form.masked else None, form)
        (out[real].float() * upstream).sum().backward()
        results.append([out[real], *(tensor.grad for tensor in tensors)])
    for found, expected in zip(results[1], results[0], strict=True):
        assert found is not None and expected is not None
        assert tiny.relative(found, expected) < (1e-5 if dtype is torch.float32 else 2e-2)


def fused(tensors: list[Tensor], mask: Tensor | None, form: AttentionForm) -> Tensor:
    query, key, value = tensors
    return fused_attention(query, key, value, mask, 0.3, form).permute(0, 3, 1, 2, 4).flatten(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_no_form_falls_back_to_plain_products(attention: str, padding: str, dtype: str, base: Path) -> None:
    """With the math kernel forbidden, forward and backward run all the same, and give what the CPU gives."""
    config = tiny.model_config(base, dtype=dtype, embedding={"pooling": "mean", "attention": attention})
    model, twin = UnifiedModel(config, torch.device("cuda")), UnifiedModel(config, tiny.CPU)
    batch = tiny.batch(tiny.ids([40, 23, 64]), padding, 16)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        vectors = model.embed(batch.to("cuda"))
        vectors.sum().backward()
    assert tiny.relative(vectors.cpu(), twin.embed(batch)) < (1e-3 if dtype == "float32" else 5e-2)
