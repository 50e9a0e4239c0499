"""`MoELoRALinear`: the projections that read one input, frozen and fused, with routed LoRA experts on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.config import AdapterConfig
from unimoer.model.blocked import block, linear
from unimoer.model.ops import Block, Layout, lora_linear
from unimoer.model.routing import Routing
from unimoer.model.served import Served


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a choice of experts is stacked."""

    layout: Layout
    scale: Tensor
    """`[P*R]`; 0 for a rank that is not active."""
    spread: Tensor
    """`[units, P*R]`: carries the weight of an expert, times the gain, to all its ranks."""
    by_projection: Tensor
    """`[P*R]`: the hidden ranks, which stand by expert, in the order of the projections."""


class MoELoRALinear(nn.Module):
    """`y = W0 x + s * sum_e w_e(x) B_e A_e x` for P projections of the same input.

    The frozen weights are stacked into one `[sum d_out, d_in]` matrix. Expert e of rank r_e has one `a [P * r_e, d_in]`
    and one `b [sum of the adapted d_out, r_e]`, so that it can be frozen, removed or skipped alone; for the products
    the experts in use are stacked, and two of them do whatever E is: the routing weights multiply the rank dimension
    between the two. One expert without weights is plain LoRA. A is Kaiming-uniform as in PEFT's LoRA, B is zero, so
    step 0 equals the base model.

    Args:
        linears: projections by name, in the order of the output; all read the same input.
        config: targets, alpha, dropout and the gain of routing weights.
        ranks: rank of each expert, by its name.
    """

    def __init__(self, linears: Mapping[str, nn.Linear], config: AdapterConfig, ranks: Mapping[str, int]) -> None:
        super().__init__()
        members = list(linears.values())
        self.names = list(linears)
        self.sizes = [linear.out_features for linear in members]
        self.targets = [name for name in self.names if name in set(config.targets)]
        self.dropout = config.dropout
        self.scale = config.alpha / config.rank
        self.rank_wise = config.rank_wise
        # A choice among whole experts is no average: its weights are 0 and 1 as they stand.
        self.gain = 1.0 if config.router is not None and config.router.named_experts else config.gain
        # Frozen parameters, not buffers: the gradient probe asks for their gradient.
        self.weight = nn.Parameter(torch.cat([m.weight.detach() for m in members]), requires_grad=False)
        biases = [m.bias for m in members]
        self.bias: nn.Parameter | None = None
        if any(bias is not None for bias in biases):
            filled = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias.detach() for m in members]
            self.bias = nn.Parameter(torch.cat(filled), requires_grad=False)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        target_rows = sum(size for name, size in zip(self.names, self.sizes, strict=True) if name in self.targets)
        for name, rank in ranks.items() if self.targets else ():
            a = torch.empty(len(self.targets) * rank, self.weight.shape[1], device=self.weight.device)
            # Each projection for itself, as if it stood alone: the bound depends on the input's width only.
            self.a[name] = nn.Parameter(nn.init.kaiming_uniform_(a, a=math.sqrt(5)))
            self.b[name] = nn.Parameter(torch.zeros(target_rows, rank, device=self.weight.device))
        self.active = dict(ranks) if self.targets else {}
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._served: Served | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each expert, by its name."""
        return {name: b.shape[1] for name, b in self.b.items()}

    def rows(self, name: str) -> slice:
        """Where projection `name` stands in the stacked output."""
        start = sum(self.sizes[: self.names.index(name)])
        return slice(start, start + self.sizes[self.names.index(name)])

    def forward(self, x: Tensor, routing: Routing | None = None, residual: Tensor | None = None) -> Tensor:
        """`x [..., d_in] -> [..., sum d_out]`; without `routing` all experts are added up; `residual` is added too."""
        experts = tuple(self.active) if routing is None else tuple(one for one in routing.experts if one in self.active)
        weighed = routing is not None and routing.weights is not None
        if self._served is not None and not weighed:
            return self._served.add_up(x, experts, residual)
        if not experts:
            return linear(x, self.weight, self.bias, residual)
        plan = self._plan(experts)
        weights = None
        if routing is not None and routing.weights is not None:
            # A product, not an index: its backward is one too, and needs no scattered sum.
            weights = routing.weights @ plan.spread
        if self._served is not None and weights is not None and experts == tuple(self.active):
            return self._served.weighed(x, weights, residual)
        if self._served is not None:
            self._served.restore(self)
        return lora_linear(
            x,
            self.weight,
            [self.a[name] for name in experts],
            [self.b[name] for name in experts],
            plan.scale,
            plan.layout,
            bias=self.bias,
            x_adapter=F.dropout(x, self.dropout) if self.training and self.dropout > 0 else None,
            routing=weights,
            residual=residual,
        )

    @torch.inference_mode(False)
    def _plan(self, experts: tuple[str, ...]) -> _Plan:
        if experts in self._plans:
            return self._plans[experts]
        layout: list[Block] = []
        units: list[int] = []
        active: list[bool] = []
        unit = 0
        for index, expert in enumerate(experts):
            rank, start = self.ranks[expert], 0
            for name in self.targets:
                rows = self.rows(name)
                size = rows.stop - rows.start
                columns = slice(len(units), len(units) + rank)
                layout.append(Block(index, slice(start, start + size), rows, columns))
                start += size
                units += [unit + place if self.rank_wise else unit for place in range(rank)]
                active += [place < self.active[expert] for place in range(rank)]
            unit += rank if self.rank_wise else 1
        device = self.weight.device
        gain = unit if self.gain is None else self.gain
        spread = F.one_hot(torch.tensor(units, device=device), unit).t().float() * gain
        # Blocks stand by expert; a stable sort by their rows puts those of one projection together.
        blocks = sorted(layout, key=lambda block: block.out_rows.start)
        order = [column for block in blocks for column in range(block.columns.start, block.columns.stop)]
        scale = torch.tensor(active, device=device) * self.scale
        plan = _Plan(layout, scale, spread, torch.tensor(order, device=device))
        self._plans[experts] = plan
        return plan

    def lora(self, name: str, expert: str) -> tuple[Tensor, Tensor, float]:
        """One projection's expert: `A [r, d_in]`, `B [d_out, r]` (views) and the scale s of its update `s B A`.

        Raises:
            KeyError: the projection or the expert is not there.
        """
        if expert not in self.active or name not in self.targets:
            raise KeyError(f"no expert {expert!r} on {name!r}; adapted: {self.targets}, experts: {list(self.active)}")
        if self._served is not None:
            self._served.restore(self)
        place, rank = self.targets.index(name), self.ranks[expert]
        block = self._plan((expert,)).layout[place]
        return self.a[expert][place * rank : (place + 1) * rank], self.b[expert][block.b_rows], self.scale

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the only expert into the frozen weights, for inference: no product is left of it.

        The sum is rounded to the base's precision, so outputs differ by that rounding.

        Raises:
            ValueError: there are several experts, and which of them counts is not known here.
        """
        if len(self.a) > 1:
            raise ValueError(f"{len(self.a)} experts cannot be merged into one matrix")
        for expert in list(self.active):
            self.fold(expert)
            self.remove(expert)

    @torch.no_grad()
    def fold(self, expert: str) -> None:
        """Add an expert's update to the frozen weights, rounded to their precision; the expert stays."""
        active = self.active[expert]
        for name in self.targets:
            a, b, scale = self.lora(name, expert)
            rows = self.weight[self.rows(name)]
            rows.copy_(torch.addmm(rows.float(), b[:, :active].float(), a[:active].float(), alpha=scale))

    @torch.no_grad()
    def stack(self, merged: Sequence[str] = ()) -> None:
        """Lay the experts side by side in the base's precision, for inference, and fold those that are `merged`.

        Weights, `a` and `b` become views: nothing is stored twice, and nothing is stacked while serving.
        """
        if not self.active:
            return
        for expert, active in self.active.items():
            self.b[expert].data[:, active:] = 0
        self._served = Served(self, merged, self._plan(tuple(self.active)).by_projection)

    @torch.no_grad()
    def lay_out(self) -> None:
        """Put the frozen weights into the layout that products read fastest, where one is known; the last step."""
        if self._served is not None:
            self._served.lay_out(self)
        elif not self.active and (laid_out := block(self.weight)).is_mkldnn:
            del self.weight
            self.register_buffer("weight", laid_out)

    def remove(self, expert: str) -> None:
        """Take an expert out for good; what it added to the output is gone.

        Raises:
            ValueError: it is merged into the weights.
        """
        if self._served is not None and self._served.merged:
            raise ValueError("experts are merged for inference; none can be removed any more")
        if self._served is not None:
            self._served.restore(self)
        del self.a[expert], self.b[expert], self.active[expert]
        self._plans.clear()
        if self._served is not None:
            self._served = None
            self.stack()
            self.lay_out()
            # The gain is for the caller to change next.
            self._plans.clear()

    def set_active(self, expert: str, ranks: int) -> None:
        """Use only the first `ranks` ranks of an expert (after DR-LoRA, arXiv 2601.04823).

        A rank that is not active neither adds to the output nor gets a gradient. The scale of the others stays, so
        growing an expert changes nothing until the new ranks have learned: their B is zero.

        Raises:
            ValueError: the expert has fewer ranks, or experts are stacked for inference.
        """
        if self._served is not None:
            raise ValueError("experts are stacked for inference; the number of their ranks can no longer change")
        if not 0 <= ranks <= self.ranks[expert]:
            raise ValueError(f"expert {expert!r} has {self.ranks[expert]} ranks, not {ranks}")
        self.active[expert] = ranks
        self._plans.clear()
