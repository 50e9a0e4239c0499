"""One run on several devices: every process computes its share of each batch, and all take the same step.

Each process draws the same batch, computes its own rows, and gathers the others' outputs as constants. The loss is
then that of the whole batch, the same number everywhere, and differentiating it gives a process the part of the
gradient that goes through its own rows: as queries, and as negatives of everybody's queries. The parts add up to the
gradient of the whole batch, so gradients are summed, not averaged; no collective runs inside a backward pass.

One process is a group of one, for which nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from unimoer.errors import UserError
from unimoer.types import TokenBatch


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of one run. Every method but `share` is a collective: all must call it, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def rows(self, total: int) -> list[int]:
        """Rows of each process, of so many in all: as equal as can be, in order.

        Raises:
            UserError: there are fewer rows than processes.
        """
        if total < self.size:
            raise UserError(f"a batch of {total} texts cannot be shared by {self.size} processes; start fewer")
        return [total // self.size + (rank < total % self.size) for rank in range(self.size)]

    def share(self, batch: TokenBatch) -> TokenBatch:
        """This process's rows; their padding stays that of the whole batch."""
        if self.size == 1:
            return batch
        return TokenBatch(*(self.part(part) for part in (batch.input_ids, batch.attention_mask, batch.position_ids)))

    def part(self, values: Tensor) -> Tensor:
        """This process's rows of a tensor that all have."""
        return values if self.size == 1 else values.split(self.rows(len(values)))[self.rank]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """`[own rows, ...] -> [total, ...]`, in the order of the processes; only the own rows carry a gradient."""
        if self.size == 1:
            return own
        rows = self.rows(total)
        # Collectives want equal sizes: the shorter parts are filled up.
        padded = own.new_zeros(max(rows), *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in rows]
        distributed.all_gather(parts, padded)
        whole = [part[:count] for part, count in zip(parts, rows, strict=True)]
        whole[self.rank] = own
        return torch.cat(whole)

    def means(self, own: Sequence[Tensor], counts: Sequence[Tensor | float]) -> list[Tensor]:
        """Means over all processes of means over so many values each; only the own parts carry a gradient."""
        if self.size == 1 or not own:
            return list(own)
        weights = torch.stack([torch.as_tensor(count, dtype=own[0].dtype, device=own[0].device) for count in counts])
        flat = torch.cat(
            [*(value.detach().flatten() * count for value, count in zip(own, weights, strict=True)), weights]
        )
        distributed.all_reduce(flat)
        *sums, totals = flat.split([*(value.numel() for value in own), len(counts)])
        return [
            value * (count / total) + (whole.view(value.shape) - value.detach() * count) / total
            for value, count, whole, total in zip(own, weights, sums, totals, strict=True)
        ]

    def total(self, own: float) -> float:
        """Sum over all processes."""
        if self.size == 1:
            return own
        found: list[float] = [0.0] * self.size
        distributed.all_gather_object(found, own)
        return sum(found)

    def add(self, tensors: Iterable[Tensor | None]) -> None:
        """Sum over all processes, in place; what is None must be None everywhere."""
        if self.size > 1:
            _sum_in_place([tensor for tensor in tensors if tensor is not None])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Mean over all processes, in place; numbers that are the same everywhere stay so to the last bit."""
        if self.size == 1 or not tensors:
            return
        own = torch.cat([tensor.flatten() for tensor in tensors])
        parts = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(parts, own)
        every = torch.stack(parts)
        _fill(tensors, torch.where((every == own).all(0), own, every.mean(0)))

    def agree(self, value: str | None) -> str | None:
        """The first process's value."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def stack(self, state: Tensor) -> Tensor:
        """One tensor of each process, `[size, ...]`; for states on the CPU whatever the device of the run."""
        if self.size == 1:
            return state.unsqueeze(0)
        found: list[Tensor] = [torch.empty(0)] * self.size
        distributed.all_gather_object(found, state)
        return torch.stack(found)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Group()


def connect(device: torch.device) -> tuple[Group, torch.device]:
    """Join the processes that `torchrun` (or `accelerate launch`) started; a group of one where it did not.

    Returns the group and this process's own device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE, device
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Group(state.process_index, state.num_processes), state.device


def _sum_in_place(tensors: Sequence[Tensor]) -> None:
    """As one flat tensor for each dtype: a collective has a price of its own, and adapters are many small tensors."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in same])
        distributed.all_reduce(flat)
        _fill(same, flat)


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view(tensor.shape))
