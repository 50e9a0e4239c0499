"""Compute without padding: real tokens of a batch one after the other, whatever the lengths of its texts.

Everything in a decoder layer but attention treats each token alone. A quarter to a half of a batch of short texts is
padding, so leaving it out saves as much of the layer's products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORTH_IT = 0.1
"""Share of padding from which the copies around attention are the smaller cost."""
MULTIPLE = 128
"""Round the number of tokens up to a multiple of this: every new shape costs the making of its kernels."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Which positions of a `[B, T]` batch are computed: the real ones, and a few of padding to fill up."""

    index: Tensor
    """`[N]`, places in the flattened batch, each at most once."""
    batch: int
    length: int

    @classmethod
    def of(cls, mask: Tensor) -> Packing | None:
        """For `[B, T]`; None where too little is padding, or all of it."""
        flat = mask.flatten().bool()
        real, wanted = int(flat.sum()), cls.size(mask)
        if wanted == len(flat):
            return None
        filled = flat.clone()
        filled[(~flat).nonzero().squeeze(1)[: wanted - real]] = True
        return cls(filled.nonzero().squeeze(1), *mask.shape)

    @staticmethod
    def size(mask: Tensor) -> int:
        """How many positions of `[B, T]` are computed."""
        real = int(mask.sum())
        wanted = -(-real // MULTIPLE) * MULTIPLE
        return mask.numel() if real == 0 or wanted > (1 - WORTH_IT) * mask.numel() else wanted

    def pack(self, x: Tensor) -> Tensor:
        """`[B, T, d] -> [1, N, d]`."""
        packed: Tensor = _Pack.apply(x, self.index)
        return packed

    def unpack(self, x: Tensor) -> Tensor:
        """`[1, N, d] -> [B, T, d]`, zero where nothing was computed."""
        unpacked: Tensor = _Unpack.apply(x, self.index, self.batch, self.length)
        return unpacked

    def spread(self, weights: Tensor) -> Tensor:
        """Routing weights `[B, T or 1, E] -> [1, N, E]`."""
        rows = self.index if weights.shape[1] > 1 else self.index // self.length
        return weights.flatten(0, 1)[rows].unsqueeze(0)


class _Pack(torch.autograd.Function):
    """No position occurs twice, so the backward pass is a copy and needs no scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.flatten(0, 1).index_select(0, index).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        [index] = ctx.saved_tensors
        return _place(grad, index, *ctx.shape[:2]), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, batch: int, length: int) -> Tensor:
        ctx.save_for_backward(index)
        return _place(x, index, batch, length)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        [index] = ctx.saved_tensors
        return grad.flatten(0, 1).index_select(0, index).unsqueeze(0), None, None, None


def _place(x: Tensor, index: Tensor, batch: int, length: int) -> Tensor:
    whole = x.new_zeros(batch * length, x.shape[-1])
    return whole.index_copy_(0, index, x[0]).view(batch, length, -1)
