"""Where the tokens of one forward pass stand, and which of them see which: the same for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from unimoer.model.ops import AttentionForm
from unimoer.model.packing import Packing
from unimoer.model.prefix import Prefix


@dataclass(frozen=True)
class Places:
    """Of a batch `[B, T]`, behind `P` tokens of a `prefix` if there is one."""

    cos: Tensor
    sin: Tensor
    """`[B, T, 1, D/2]`, in the model's precision."""
    mask: Tensor | None
    """Additive float32 `[B, 1, T, P + T]`; None where the `form` says all."""
    form: AttentionForm
    packing: Packing | None
    prefix: Prefix | None

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the tokens that are computed, `[1, N, 1, D/2]`."""
        if self.packing is None:
            return self.cos, self.sin
        cos, sin = (self.packing.pack(part.flatten(2)).unsqueeze(2) for part in (self.cos, self.sin))
        return cos, sin

    @cached_property
    def low_mask(self) -> Tensor | None:
        """In the model's precision, as PyTorch's kernels want it."""
        return None if self.mask is None else self.mask.to(self.cos.dtype)
