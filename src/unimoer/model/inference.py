"""Texts through the model, in batches of similar length under a token budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from unimoer.data.collate import pad, place_marks, reads
from unimoer.model.listwise import compare
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


def score_lists(
    model: UnifiedModel,
    queries: Sequence[str],
    candidates: Sequence[Sequence[str]],
    instruction: str | None = None,
    *,
    batch_tokens: int = 8192,
    multiple: int = 16,
    report: Report | None = None,
) -> list[np.ndarray]:
    """Cosines of each query with its own candidates, `[K]` float32, for the heads that read lists.

    Candidates beyond `list_size`: `listwise` reads as many prompts as it takes, in the order given; `cosine` reads the
    first ones and compares all.
    """
    by = _score_by_feedback if reads(model.config.reranking.head) == "lists" else _score_by_marks
    return by(model, queries, candidates, instruction, batch_tokens, multiple, report)


def _score_by_feedback(
    model: UnifiedModel,
    queries: Sequence[str],
    candidates: Sequence[Sequence[str]],
    instruction: str | None,
    batch_tokens: int,
    multiple: int,
    report: Report | None,
) -> list[np.ndarray]:
    # A document has one vector, whichever query asks for it.
    texts = list(dict.fromkeys(text for group in candidates for text in group))
    if not texts:
        return [np.empty(0, dtype=np.float32) for _ in queries]
    documents = encode(
        model,
        model.prompter.documents(texts, instruction),
        batch_tokens=batch_tokens,
        multiple=multiple,
        report=report,
    )
    places = {text: place for place, text in enumerate(texts)}
    read = [group[: model.config.reranking.list_size] for group in candidates]
    ids, _ = model.prompter.lists(queries, read, instruction, marked=False)
    vectors = _run(model, ids, model.embed_feedback, batch_tokens=batch_tokens, multiple=multiple, report=None).numpy()
    return [
        documents[[places[text] for text in group]] @ vector if group else np.empty(0, dtype=np.float32)
        for group, vector in zip(candidates, vectors, strict=True)
    ]


@torch.inference_mode()
def _score_by_marks(
    model: UnifiedModel,
    queries: Sequence[str],
    candidates: Sequence[Sequence[str]],
    instruction: str | None,
    batch_tokens: int,
    multiple: int,
    report: Report | None,
) -> list[np.ndarray]:
    size = model.config.reranking.list_size
    blocks = [
        (row, group[start : start + size])
        for row, group in enumerate(candidates)
        for start in range(0, len(group), size)
    ]
    ids, marks = model.prompter.lists([queries[row] for row, _ in blocks], [block for _, block in blocks], instruction)
    # Prompts of one batch have the same number of marks.
    alike: dict[int, list[int]] = defaultdict(list)
    for number, found_marks in enumerate(marks):
        alike[len(found_marks)].append(number)
    vectors: dict[int, Tensor] = {}
    done, total = 0, sum(len(group) for group in candidates)
    for numbers in alike.values():
        lengths = [len(ids[number]) for number in numbers]
        for rows in length_batches(lengths, batch_tokens=batch_tokens, multiple=multiple):
            chosen = [numbers[row] for row in rows]
            batch = pad(
                [ids[number] for number in chosen],
                pad_id=model.tokenizer.pad_token_id,
                padding=model.config.padding,
                multiple=multiple,
            )
            places = place_marks([marks[number] for number in chosen], batch).to(model.device)
            found = model.list_vectors(batch.to(str(model.device)), places).cpu()
            vectors.update(zip(chosen, found, strict=True))
            done += sum(len(blocks[number][1]) for number in chosen)
            if report is not None:
                report(done, total)
    by_query: list[list[Tensor]] = [[] for _ in queries]
    for number, (row, _) in enumerate(blocks):
        by_query[row].append(vectors[number])
    return [compare(found).numpy() if found else np.empty(0, dtype=np.float32) for found in by_query]
