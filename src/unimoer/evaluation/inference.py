"""Texts through the model, in batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from unimoer.data.collate import pad
from unimoer.model.unified import UnifiedModel
from unimoer.types import TokenBatch

Report = Callable[[int, int], None]
"""Called after every batch with the texts done and the texts in all."""


def length_batches(lengths: Sequence[int], *, batch_tokens: int, multiple: int) -> Iterator[list[int]]:
    """Indices of similar length, longest first, so that a batch fits `batch_tokens` with its padding.

    Longest first: if memory is short, it shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        padded = -(-max(1, lengths[order[start]]) // multiple) * multiple
        rows = max(1, batch_tokens // padded)
        # A full batch of a length always has the same number of rows: few shapes, few kernels to compile.
        yield order[start : start + rows]
        start += rows


@torch.inference_mode()
def _run(
    model: UnifiedModel,
    ids: Sequence[Sequence[int]],
    forward: Callable[[TokenBatch], Tensor],
    *,
    batch_tokens: int,
    multiple: int,
    report: Report | None,
) -> Tensor:
    device = str(model.device)
    outputs: list[Tensor | None] = [None] * len(ids)
    done = 0
    for rows in length_batches([len(sequence) for sequence in ids], batch_tokens=batch_tokens, multiple=multiple):
        sequences = [ids[row] for row in rows]
        batch = pad(sequences, pad_id=model.tokenizer.pad_token_id, padding=model.config.padding, multiple=multiple)
        for row, output in zip(rows, forward(batch.to(device)).cpu(), strict=True):
            outputs[row] = output
        done += len(rows)
        if report is not None:
            report(done, len(ids))
    return torch.stack([output for output in outputs if output is not None])


def encode(
    model: UnifiedModel,
    ids: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    multiple: int = 16,
    report: Report | None = None,
) -> np.ndarray:
    """Token ids of N texts -> `[N, d]` float32, unit length, in the order given."""
    return _run(model, ids, model.embed, batch_tokens=batch_tokens, multiple=multiple, report=report).numpy()


def score(
    model: UnifiedModel,
    ids: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    multiple: int = 16,
    report: Report | None = None,
) -> np.ndarray:
    """Token ids of N query-document pairs -> `[N]` float32 logits, in the order given."""
    return _run(model, ids, model.score, batch_tokens=batch_tokens, multiple=multiple, report=report).numpy()
