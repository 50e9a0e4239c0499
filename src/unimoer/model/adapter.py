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

    scale: Tensor
    expert_of_rank: Tensor

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
        self._layout = self._find_layout(total)
        scale = torch.cat([torch.full((rank,), alpha / rank) for rank in self.ranks.values()])
        self.register_buffer("scale", scale.to(device), persistent=False)
        experts = torch.cat([torch.full((rank,), index) for index, rank in enumerate(self.ranks.values())])
        self.register_buffer("expert_of_rank", experts.repeat(len(self.targets)).to(device), persistent=False)

    def rows(self, name: str) -> slice:
        """Where projection `name` stands in the stacked output."""
        start = sum(self.sizes[: self.names.index(name)])
        return slice(start, start + self.sizes[self.names.index(name)])

    def _find_layout(self, total: int) -> list[tuple[slice, slice, slice]]:
        layout, start = [], 0
        for index, name in enumerate(self.targets):
            rows = self.rows(name)
            size = rows.stop - rows.start
            layout.append((rows, slice(start, start + size), slice(index * total, (index + 1) * total)))
            start += size
        return layout

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
            self.b,
            self.scale,
            self._layout,
            bias=self.bias,
            x_adapter=dropped,
            routing=per_rank,
            residual=residual,
        )

    def lora(self, name: str, expert: str) -> tuple[Tensor, Tensor, float]:
        """One projection's expert: `A [r, d_in]`, `B [d_out, r]` (views) and the scale s of its update `s B A`.

        Raises:
            KeyError: the projection or the expert is not there.
        """
        if self.a is None or self.b is None or name not in self.targets:
            raise KeyError(f"projection {name!r} has no adapter; adapted: {self.targets}")
        start = sum(list(self.ranks.values())[: list(self.ranks).index(expert)])
        ranks = slice(start, start + self.ranks[expert])
        _, b_rows, columns = self._layout[self.targets.index(name)]
        a_rows = slice(columns.start + ranks.start, columns.start + ranks.stop)
        return self.a[a_rows], self.b[b_rows, ranks], float(self.scale[start])
