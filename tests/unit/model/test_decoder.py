"""The attention mask."""

from __future__ import annotations

import pytest
import torch

import tiny
from unimoer.model.decoder import attention_mask

LENGTHS = [4, 1, 3]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_real_queries_see_the_real_keys_up_to_themselves(padding: str, causal: bool) -> None:
    batch = tiny.batch(tiny.ids(LENGTHS), padding, 6)
    mask = attention_mask(batch, causal=causal)
    assert (mask.shape, mask.dtype) == ((3, 1, 6, 6), torch.float32)
    for row, length in enumerate(LENGTHS):
        start = 6 - length if padding == "left" else 0
        for query in range(start, start + length):
            seen = (mask[row, 0, query] == 0).nonzero().flatten().tolist()
            assert seen == list(range(start, query + 1 if causal else start + length))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_no_row_is_without_a_key_in_any_precision(padding: str) -> None:
    """float32's minimum is minus infinity in bfloat16, and some GPU kernels turn a row of those into NaN."""
    mask = attention_mask(tiny.batch(tiny.ids(LENGTHS), padding, 6), causal=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.isfinite(mask.to(dtype).amax(-1)).all()
