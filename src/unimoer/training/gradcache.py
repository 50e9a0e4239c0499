"""GradCache: a contrastive loss over a batch whose activations do not fit in memory, exact to rounding.

Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021,
arXiv 2101.06983. The embeddings of all chunks are computed without a graph, the loss and its gradient follow from
them, and then each chunk is computed again, with the same random numbers, to carry its part of that gradient on to
the parameters. Activations of one chunk at a time, for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unimoer.types import TokenBatch

Embed = Callable[[TokenBatch], tuple[Tensor, Tensor]]
"""A chunk in, its embeddings `[b, d]` and a scalar side loss (of its routers, zero if none) out."""
Loss = Callable[[Tensor], tuple[Tensor, dict[str, float]]]
"""The embeddings of all chunks `[B, d]` in, a scalar and numbers for the log out."""
RandomState = tuple[Tensor, Tensor | None]


def split_rows(batch: TokenBatch, rows: int) -> list[TokenBatch]:
    """Chunks of `rows` rows, the last with what is left; they share memory and padding with the batch."""
    parts = (part.split(rows) for part in (batch.input_ids, batch.attention_mask, batch.position_ids))
    return [TokenBatch(*chunk) for chunk in zip(*parts, strict=True)]


def cached_loss(
    chunks: Sequence[TokenBatch],
    embed: Embed,
    loss: Loss,
    parameters: Sequence[nn.Parameter],
    *,
    rows: int | None = None,
    total: Callable[[float], float] = lambda own: own,
) -> tuple[Tensor, dict[str, float]]:
    """`loss(embeddings of all chunks) + sum of side losses`, whose backward pass goes chunk by chunk.

    The result is differentiated like any other loss (scaled, added, by `backward` or `torch.autograd.grad`); the
    chunks are computed again at that moment, so the parameters must not have changed by then. Each side loss counts
    by its chunk's share of all rows: a mean over rows stays the mean over the batch. A product of two batch means, as
    in load balancing, does not: it becomes the mean of the chunks' own products.

    Without gradients (`torch.no_grad`) there is one forward pass and nothing to differentiate.

    Args:
        chunks: may differ in length, so queries and documents go in one list.
        embed: called twice for every chunk, so it must not count anything or move a router's bias.
        loss: has no parameters of its own; they would get no gradient.
        parameters: everything trained that `embed` reaches; what is left out gets no gradient.
        rows: of the whole batch, where other processes have a part of it.
        total: adds up the side losses of all processes.
    """
    device = parameters[0].device
    counts = [len(chunk.input_ids) for chunk in chunks]
    shares = [count / (rows or sum(counts)) for count in counts]
    states: list[RandomState] = []
    parts: list[Tensor] = []
    sides: list[Tensor] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(random_state(device))
            part, side = embed(chunk)
            parts.append(part)
            sides.append(side)
        embeddings = torch.cat(parts)
        side_loss = torch.stack([share * side for share, side in zip(shares, sides, strict=True)]).sum()
        side_loss += total(found := side_loss.item()) - found
    if not torch.is_grad_enabled():
        value, metrics = loss(embeddings)
        return value + side_loss, metrics
    embeddings.requires_grad_()
    value, metrics = loss(embeddings)
    [gradient] = torch.autograd.grad(value, embeddings)
    gradients = gradient.split(counts)

    def replay() -> list[Tensor | None]:
        total: list[Tensor | None] = [None] * len(parameters)
        now = random_state(device)
        try:
            for chunk, state, part_gradient, share in zip(chunks, states, gradients, shares, strict=True):
                set_random_state(device, state)
                with torch.enable_grad():
                    part, side = embed(chunk)
                    surrogate = torch.sum(part * part_gradient) + share * side
                found = torch.autograd.grad(surrogate, parameters, allow_unused=True)
                total = [
                    new if old is None else old if new is None else old + new
                    for old, new in zip(total, found, strict=True)
                ]
        finally:
            # What comes after draws the numbers that it would have drawn without the replay.
            set_random_state(device, now)
        return total

    return _Replay.apply(value.detach() + side_loss, replay, *parameters), metrics


class _Replay(torch.autograd.Function):
    """A value that is known, and a function that computes its gradients for the parameters when they are asked for."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, replay: Callable[[], list[Tensor | None]], *parameters: Tensor) -> Tensor:
        ctx.replay = replay
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if found is None else found * grad for found in ctx.replay())


def random_state(device: torch.device) -> RandomState:
    """Of the CPU and of the accelerator: dropout draws on the device of its input."""
    match device.type:
        case "cuda":
            return torch.get_rng_state(), torch.cuda.get_rng_state(device)
        case "mps":
            return torch.get_rng_state(), torch.mps.get_rng_state()
    return torch.get_rng_state(), None


def set_random_state(device: torch.device, state: RandomState) -> None:
    cpu, accelerator = state
    torch.set_rng_state(cpu)
    if accelerator is not None:
        if device.type == "cuda":
            torch.cuda.set_rng_state(accelerator, device)
        else:
            torch.mps.set_rng_state(accelerator)
