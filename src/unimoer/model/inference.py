"""Texts through the model, in batches of similar length under a token budget."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unimoer.data.collate import pad, place_marks, reads
from unimoer.errors import UserError
from unimoer.files import new_array, read_json, write_json
from unimoer.model.listwise import compare
from unimoer.model.prefix import Prefix, common_beginning
from unimoer.model.unified import UnifiedModel
from unimoer.types import TokenBatch

Report = Callable[[int, int], None]
"""Called after every batch with the texts done and the texts in all."""

WINDOW = 8192
"""Texts that `encode_to` holds at a time: enough of each length for batches with little padding."""


def usual_budget(device: torch.device) -> int:
    """Tokens of a forward pass: on a CPU, what goes through a layer should still lie in its cache for the next."""
    return 2048 if device.type == "cpu" else 8192


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
    # Equal rows once: in another batch, beside other lengths, the same row would round to other numbers.
    unique = {row: place for place, row in enumerate(dict.fromkeys(map(tuple, ids)))}
    where = [unique[tuple(row)] for row in ids]
    ids = list(unique)
    device = str(model.device)
    outputs = torch.empty(0)
    done = 0
    for rows in length_batches([len(sequence) for sequence in ids], batch_tokens=batch_tokens, multiple=multiple):
        sequences = [ids[row] for row in rows]
        batch = pad(sequences, pad_id=model.tokenizer.pad_token_id, padding=model.config.padding, multiple=multiple)
        found = forward(batch.to(device)).cpu()
        if done == 0:
            outputs = found.new_empty(len(ids), *found.shape[1:])
        outputs[rows] = found
        done += len(rows)
        if report is not None:
            report(done, len(ids))
    return outputs[where]


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


def encode_to(
    path: Path,
    model: UnifiedModel,
    texts: Sequence[str],
    tokenise: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    *,
    identity: str,
    dtype: Literal["float32", "float16"] = "float32",
    batch_tokens: int = 8192,
    multiple: int = 16,
    report: Report | None = None,
) -> np.ndarray:
    """Encode N texts into the file `path`, `[N, d]` in `.npy` format, and return it memory-mapped, read only.

    `WINDOW` texts at a time are read, tokenised, encoded in the order of their lengths and written; nothing else is in
    memory. A call after a kill goes on behind the last window that was written, which `path` with the suffix `.json`
    records. `identity` names the model and the texts (see `identify`): vectors of two never mix. One process at a time.

    Raises:
        UserError: the file holds vectors of something else, or the disk is too small for all of them.
    """
    state = path.with_suffix(".json")
    wanted = {"identity": identity, "texts": len(texts), "dtype": dtype}
    fresh = not path.exists()
    found = {} if fresh or not state.exists() else read_json(state)
    if not fresh and {key: found.get(key) for key in wanted} != wanted:
        raise UserError(
            f"{path}: holds vectors of another model, corpus or precision; delete it or choose another file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(found.get("done", 0), len(texts), WINDOW):
        ids = tokenise(texts[start : start + WINDOW])
        within = None if report is None else partial(_later, report, start, len(texts))
        vectors = encode(model, ids, batch_tokens=batch_tokens, multiple=multiple, report=within)
        if start == 0:
            write_json(state, {**wanted, "done": 0})
            new_array(path, (len(texts), vectors.shape[1]), dtype)
        # Mapped for one window: pages that were written count as memory of the process until they are unmapped.
        array = np.load(path, mmap_mode="r+")
        array[start : start + len(ids)] = vectors
        array.flush()
        write_json(state, {**wanted, "done": start + len(ids)})
    written: np.ndarray = np.load(path, mmap_mode="r")
    return written


def _later(report: Report, start: int, total: int, done: int, _: int) -> None:
    report(start + done, total)


def identify(model: UnifiedModel, *parts: str) -> str:
    """SHA-256 of all weights, the configuration and `parts`: what decides about a vector."""
    digest = hashlib.sha256("\0".join([model.config.model_dump_json(), *parts]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{name}".encode())
        tensor = tensor.to_dense() if tensor.is_mkldnn else tensor
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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


LEAST_SHARED = 8
"""Tokens of a common beginning from which it is computed apart: a forward pass has a price of its own."""


class Alike:
    """Pairs of one query: what they all begin with is computed once, where the model allows it, and kept.

    Scores are those of `score` but for rounding.
    """

    def __init__(self, model: UnifiedModel, ids: Sequence[list[int]]) -> None:
        """`ids` are all pairs that will be asked for."""
        self._model, self._first = model, ids[0] if ids else ()
        shared = common_beginning(ids) if len(ids) > 1 and not model.reads_apart else 0
        self.shared = shared if shared >= LEAST_SHARED else 0
        """Tokens that are computed once."""
        self._prefix: Prefix | None = None

    def score(
        self,
        ids: Sequence[Sequence[int]],
        *,
        batch_tokens: int = 8192,
        multiple: int = 16,
        report: Report | None = None,
    ) -> np.ndarray:
        """Some of the pairs, `[N]`, in the order given."""
        if not self.shared:
            return score(self._model, ids, batch_tokens=batch_tokens, multiple=multiple, report=report)
        if self._prefix is None:
            with torch.inference_mode():
                self._prefix = self._model.read_prefix(self._first[: self.shared])
        rest = [row[self.shared :] for row in ids]
        forward = partial(self._model.score_after, self._prefix)
        found = _run(self._model, rest, forward, batch_tokens=batch_tokens, multiple=multiple, report=report)
        return found.numpy()


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
