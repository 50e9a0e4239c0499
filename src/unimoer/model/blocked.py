"""Frozen weights in the layout that oneDNN multiplies by, where it is known: bfloat16 on an x86 processor.

A product lays its weight out anew at every call. Over a few rows that takes longer than the product itself, and a
single query is a few rows: with the layout made once it is a quarter faster. These are the operators that PyTorch's
compiler calls for frozen linear layers.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 32
"""The number of rows that the layout is made for; others are multiplied by it too."""


def block(weight: Tensor) -> Tensor:
    """`[d_out, d_in]` in oneDNN's layout, or as it is where there is none; `to_dense` gives it back."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not supported():
        return weight
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return found


def supported() -> bool:
    """Whether this processor and this PyTorch have such a layout."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    # Not public: a later PyTorch may name them otherwise.
    there = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """`x W^T + bias + residual`, `[..., d_in] -> [..., d_out]`; no gradient where the weight was laid out."""
    if not weight.is_mkldnn:
        y = F.linear(x, weight, bias)
        return y if residual is None else y + residual
    if residual is None:
        alone: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return alone
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return added
