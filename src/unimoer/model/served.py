"""Experts as they are served: their A lie below the frozen weights, so that one product computes both.

A narrow product costs a call and a pass over its input, whatever its rank: for a single query, several percent of a
layer. And where each task has experts of its own, those of one task are merged: it runs as fast as a model without any,
and the other task adds the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimoer.model.ops import weigh

if TYPE_CHECKING:
    from unimoer.model.adapter import MoELoRALinear


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
        for name in self.merged:
            module.fold(name)
        sizes = [len(a) for a in module.a.values()]
        self.weight = torch.cat([module.weight, *(a.to(dtype) for a in module.a.values())])
        self.b = torch.cat([b.to(dtype) for b in module.b.values()], dim=1)
        self.columns: dict[str, slice] = {}
        start = 0
        own = zip(self.experts, self.weight[rows:].split(sizes), self.b.split(_ranks(module), dim=1), strict=True)
        for (name, a, b), size in zip(own, sizes, strict=True):
            module.a[name], module.b[name] = (nn.Parameter(part, requires_grad=False) for part in (a, b))
            self.columns[name] = slice(start, start + size)
            start += size
        module.weight = nn.Parameter(self.weight[:rows], requires_grad=False)

    def add_up(self, x: Tensor, experts: Sequence[str], residual: Tensor | None) -> Tensor:
        """`[..., d_in] -> [..., sum d_out]` with some experts, whole and unweighed."""
        parts = [(name, self.scale) for name in experts if name not in self.merged]
        parts += [(name, -self.scale) for name in self.merged if name not in experts]
        if not parts:
            y = F.linear(x, self.weight[: self.rows], self.bias)
            return y if residual is None else y.add_(residual)
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
        whole = F.linear(x.flatten(0, -2), self.weight)
        y, hidden = whole[:, : self.rows], whole[:, self.rows :]
        if residual is not None:
            y = y + residual.flatten(0, -2)
        if self.bias is not None:
            y.add_(self.bias)
        return y, hidden

    def _add(self, y: Tensor, hidden: Tensor, b: Tensor, scale: float) -> None:
        """`[N, P*r]` by projection, times each projection's rows of B."""
        start, rank = 0, b.shape[1]
        for place, rows in enumerate(self.targets):
            stop = start + rows.stop - rows.start
            y[:, rows].addmm_(hidden[:, place * rank : (place + 1) * rank], b[start:stop].t(), alpha=scale)
            start = stop

    def _own(self, name: str) -> slice:
        """Columns of an expert in B, where its rank stands once for all projections."""
        found, count = self.columns[name], len(self.targets)
        return slice(found.start // count, found.stop // count)


def _ranks(module: MoELoRALinear) -> list[int]:
    return [b.shape[1] for b in module.b.values()]
