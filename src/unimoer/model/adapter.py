"""`MoELoRALinear`: the projections that read one input, frozen and fused, with routed LoRA experts on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.model.ops import lora_linear


class MoELoRALinear(nn.Module):
    """`y = W0 x + s * sum_e w_e(x) B_e A_e x` for P projections of the same input.

    The frozen weights are stacked into one `[sum d_out, d_in]` matrix. Every targeted projection p has E experts
    of ranks `ranks`; with R their sum, `a [P*R, d_in]` holds all A and `b [sum d_out, R]` all B, whatever E is.
    The routing weights `[..., E]` multiply the rank dimension between the two products; E = 1 without weights is
    plain LoRA. A is Kaiming-uniform as in PEFT's LoRA, B is zero, so step 0 equals the base model.

    Args:
        linears: projections by name, in the order of the output; all read the same input.
        targets: names that get an adapter; the others stay as they are.
        ranks: rank of each expert, by the expert's name.
        alpha: the update is scaled by `alpha / rank`, per expert.
        dropout: probability on the adapter's input while training.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        *,
        targets: Sequence[str],
        ranks: Mapping[str, int],
        alpha: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        members = list(linears.values())
        self.names = list(linears)
        self.sizes = [linear.out_features for linear in members]
        self.targets = [name for name in self.names if name in set(targets)]
        self.ranks = dict(ranks)
        self.dropout = dropout
        # Frozen parameters, not buffers: the gradient probe asks for their gradient.
        self.weight = nn.Parameter(torch.cat([m.weight.detach() for m in members]), requires_grad=False)
        biases = [m.bias for m in members]
        self.bias: nn.Parameter | None = None
        if any(bias is not None for bias in biases):
            filled = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias.detach() for m in members]
            self.bias = nn.Parameter(torch.cat(filled), requires_grad=False)
        device = self.weight.device
        total, d_in = sum(self.ranks.values()), self.weight.shape[1]
        self.a: nn.Parameter | None = None
        self.b: nn.Parameter | None = None
        if not self.targets:
            return
        self.a = nn.Parameter(torch.empty(len(self.targets) * total, d_in, device=device, dtype=torch.float32))
        target_rows = sum(size for name, size in zip(self.names, self.sizes, strict=True) if name in self.targets)
        self.b = nn.Parameter(torch.zeros(target_rows, total, device=device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        scale = torch.cat([torch.full((rank,), alpha / rank) for rank in self.ranks.values()])
        self.register_buffer("scale", scale.to(device), persistent=False)
        experts = torch.cat([torch.full((rank,), index) for index, rank in enumerate(self.ranks.values())])
        self.register_buffer("expert_of_rank", experts.repeat(len(self.targets)).to(device), persistent=False)

    def rows(self, name: str) -> slice:
        """Where projection `name` stands in the stacked output."""
        start = sum(self.sizes[: self.names.index(name)])
        return slice(start, start + self.sizes[self.names.index(name)])

    def _stacked_b(self, b: Tensor) -> Tensor:
        """`[target rows, R] -> [sum d_out, P*R]`: each projection's rows see only its own ranks.

        One wide product beats P narrow ones: with ranks this small a product costs a pass over its output.
        """
        scaled = b * self.scale
        if self.names == self.targets and len(self.names) == 1:
            return scaled
        total, blocks, start, column = scaled.shape[1], [], 0, 0
        width = total * len(self.targets)
        for name, size in zip(self.names, self.sizes, strict=True):
            if name in self.targets:
                blocks.append(F.pad(scaled[start : start + size], (column, width - column - total)))
                start, column = start + size, column + total
            else:
                blocks.append(scaled.new_zeros(size, width))
        return torch.cat(blocks)

    def forward(self, x: Tensor, routing: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """`x [..., d_in] -> [..., sum d_out]`; `routing [..., E]`; `residual` is added to the output."""
        if self.a is None or self.b is None:
            y = F.linear(x, self.weight, self.bias)
            return y if residual is None else y + residual
        dropped = F.dropout(x, self.dropout) if self.training and self.dropout > 0 else None
        per_rank = None if routing is None else routing[..., self.expert_of_rank]
        return lora_linear(
            x,
            self.weight,
            self.a,
            self._stacked_b(self.b),
            bias=self.bias,
            x_adapter=dropped,
            routing=per_rank,
            residual=residual,
        )

    def delta(self, name: str, expert: str) -> Tensor:
        """The update of one projection by one expert, `s * B_e A_e` `[d_out, d_in]`, float32."""
        a, b = self.lora(name, expert)
        index = list(self.ranks).index(expert)
        start = sum(list(self.ranks.values())[:index])
        return self.scale[start] * (b @ a)

    def lora(self, name: str, expert: str) -> tuple[Tensor, Tensor]:
        """Views of `A_e [r, d_in]` and `B_e [d_out, r]` of one projection: what an export to PEFT holds."""
        if self.a is None or self.b is None or name not in self.targets:
            raise KeyError(f"projection {name!r} has no adapter; adapted: {self.targets}")
        index = list(self.ranks).index(expert)
        start = sum(list(self.ranks.values())[:index])
        columns = slice(start, start + self.ranks[expert])
        first = self.targets.index(name) * sum(self.ranks.values())
        row = sum(self.sizes[self.names.index(n)] for n in self.targets[: self.targets.index(name)])
        rows = slice(row, row + self.sizes[self.names.index(name)])
        return self.a[first + columns.start : first + columns.stop], self.b[rows, columns]
