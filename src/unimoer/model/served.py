"""Experts as they are served: their A lie below the frozen weights, so that one product computes both.

A narrow product costs a call and a pass over its input, whatever its rank: for a single query, several percent of a
layer. Where each task has experts of its own, those of one task are merged: it runs as fast as a model without any, and
the other task adds the difference, by products of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.model.blocked import block, linear
from unimoer.model.ops import weigh

if TYPE_CHECKING:
    from unimoer.model.adapter import MoELoRALinear


FEW = 64
"""Tokens up to which the price of a product is that of its call."""


class Served:
    """The projections of one input with all their experts, in the base's precision, for inference."""

    def __init__(self, module: MoELoRALinear, merged: Sequence[str], by_projection: Tensor) -> None:
        """Takes over the module's weights: they and its experts become views, and nothing is stored twice.

        `merged` are experts that are folded into the weights, rounded once; `by_projection [P*R]` puts the hidden
        ranks, which stand by expert, in the order of the projections.
        """
        dtype, rows = module.weight.dtype, len(module.weight)
        self.experts, self.scale, self.bias = tuple(module.a), module.scale, module.bias
        self.merged = tuple(name for name in merged if name in module.a)
        self.rows = rows
        self.targets = [module.rows(name) for name in module.targets]
        self.by_projection = by_projection if len(self.targets) > 1 else None
        widths = [where.stop - where.start for where in self.targets]
        block = math.gcd(*widths)
        self.blocks: Tensor | None = None
        """The projection of each block of as many outputs, if there are several and none is left out."""
        if len(widths) > 1 and sum(widths) == rows:
            owners = [place for place, width in enumerate(widths) for _ in range(width // block)]
            self.blocks = torch.tensor(owners, device=module.weight.device)
        for name in self.merged:
            module.fold(name)
        sizes = [len(a) for a in module.a.values()]
        self.b = torch.cat([b.to(dtype) for b in module.b.values()], dim=1)
        for name, b in zip(self.experts, self.b.split(_ranks(module), dim=1), strict=True):
            module.b[name] = nn.Parameter(b, requires_grad=False)
        ends = list(accumulate(sizes))
        self.columns = {name: slice(end - size, end) for name, end, size in zip(self.experts, ends, sizes, strict=True)}
        low = torch.cat([a.to(dtype) for a in module.a.values()])
        self.low = low if self.merged else None
        """The experts' A, if they have a product of their own."""
        self.weight = module.weight.detach() if self.merged else torch.cat([module.weight, low])
        self._show(module)

    def lay_out(self, module: MoELoRALinear) -> None:
        """Put the weights into the layout of products, where there is one; A that lie below them are then unseen."""
        self.weight = block(self.weight)
        if not self.weight.is_mkldnn:
            return
        del module.weight
        module.register_buffer("weight", self.weight)
        if self.low is None:
            module.a.clear()

    def restore(self, module: MoELoRALinear) -> None:
        """Undo `lay_out`: for whoever looks at the weights."""
        if self.weight.is_mkldnn:
            self.weight = self.weight.to_dense()
            self._show(module)

    def _show(self, module: MoELoRALinear) -> None:
        """Let the module's weights and A be views of those here."""
        low = self.weight[self.rows :] if self.low is None else self.low
        del module.weight
        module.weight = nn.Parameter(self.weight[: self.rows], requires_grad=False)
        for name, columns in self.columns.items():
            module.a[name] = nn.Parameter(low[columns], requires_grad=False)

    def add_up(self, x: Tensor, experts: Sequence[str], residual: Tensor | None) -> Tensor:
        """`[..., d_in] -> [..., sum d_out]` with some experts, whole and unweighed."""
        parts = [(name, self.scale) for name in experts if name not in self.merged]
        parts += [(name, -self.scale) for name in self.merged if name not in experts]
        if not parts and (self.low is not None or not self.weight.is_mkldnn):
            return linear(x, self.weight if self.low is not None else self.weight[: self.rows], self.bias, residual)
        y, hidden = self._product(x, residual)
        for name, scale in parts:
            ranks = hidden[:, self.columns[name]]
            b = self.b[:, self._own(name)]
            self._add(y, ranks, b, scale)
        return y.view(*x.shape[:-1], self.rows)

    def weighed(self, x: Tensor, weights: Tensor, residual: Tensor | None) -> Tensor:
        """`x [B, T, d_in]` with all experts; `weights [B, T or 1, P*R]` multiply their hidden ranks."""
        y, hidden = self._product(x, residual)
        hidden = weigh(hidden, weights)
        if self.by_projection is not None:
            hidden = hidden.index_select(1, self.by_projection)
        self._add(y, hidden, self.b, self.scale)
        return y.view(*x.shape[:-1], self.rows)

    def _product(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the base gives, with the residual, and the hidden ranks of all experts; both `[N, ...]`."""
        x = x.flatten(0, -2)
        if residual is not None:
            residual = residual.flatten(0, -2)
        if self.low is not None:
            return linear(x, self.weight, self.bias, residual), F.linear(x, self.low)
        whole = linear(x, self.weight)
        y, hidden = whole[:, : self.rows], whole[:, self.rows :]
        if residual is not None:
            y = y + residual
        if self.bias is not None:
            y.add_(self.bias)
        return y, hidden

    def _add(self, y: Tensor, hidden: Tensor, b: Tensor, scale: float) -> None:
        """`[N, P*r]` by projection, times each projection's rows of B."""
        count, rank = len(self.targets), b.shape[1]
        if self.blocks is not None and len(y) <= FEW:
            # One call for all projections: each is some blocks of the same width.
            ranks = hidden.view(-1, count, rank).transpose(0, 1).index_select(0, self.blocks)
            rows = y.unflatten(1, (len(self.blocks), -1)).transpose(0, 1)
            rows.baddbmm_(ranks, b.unflatten(0, (len(self.blocks), -1)).transpose(1, 2), alpha=scale)
            return
        start = 0
        for place, where in enumerate(self.targets):
            stop = start + where.stop - where.start
            y[:, where].addmm_(hidden[:, place * rank : (place + 1) * rank], b[start:stop].t(), alpha=scale)
            start = stop

    def _own(self, name: str) -> slice:
        """Columns of an expert in B, where its rank stands once for all projections."""
        found, count = self.columns[name], len(self.targets)
        return slice(found.start // count, found.stop // count)


def _ranks(module: MoELoRALinear) -> list[int]:
    return [b.shape[1] for b in module.b.values()]
