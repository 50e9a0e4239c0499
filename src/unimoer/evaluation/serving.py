"""What a model costs as it would be served: bytes of its weights, and milliseconds a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

import numpy as np
import torch
from torch import nn

from unimoer.evaluation.rerank import cut, rerank
from unimoer.model.inference import encode
from unimoer.model.unified import UnifiedModel
from unimoer.types import RetrievalDataset, Run, Task


@dataclass(frozen=True, slots=True)
class Traffic:
    """Where requests come from: one data set, its test queries, and their first-stage candidates."""

    dataset: RetrievalDataset
    queries: Sequence[str]
    """Their ids."""
    candidates: Run
    instruction: str | None = None


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Of parameters and buffers, each storage once: tied matrices are one."""
    storages: dict[int, int] = {}
    for tensor in (tensor for model in models for tensor in [*model.parameters(), *model.buffers()]):
        if tensor.is_mkldnn:
            # In oneDNN's layout: its storage is not to be seen, and nothing else is in it.
            storages[id(tensor)] = tensor.nbytes
        else:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def serving_costs(
    model: UnifiedModel, traffic: Sequence[Traffic], tasks: Sequence[Task], *, requests: int, depth: int
) -> dict[str, float]:
    """Memory and latency of a model that `for_inference` has made ready.

    A request is one query, tokenised and embedded, or one query's whole candidate list of up to `depth`, tokenised and
    scored. Requests come one at a time, from all data sets in turn; every one is made twice and the second is timed,
    since on a CPU a new length costs the compilation of its kernels.

    Returns `weights_mb`, without a score head where `tasks` has no use for it, and for each task `<task>_ms` and
    `<task>_ms_p95`, the median and the 95th percentile of milliseconds; no latency where there is no request.
    """
    idle = 0 if Task.RERANKING in tasks else sum(tensor.nbytes for tensor in model.head.parameters())
    found = {"weights_mb": (weight_bytes([model]) - idle) / 2**20}
    for task in tasks:
        chosen = _choose(traffic, task, requests)
        times = [_milliseconds(model, source, query, task, depth) for source, query in chosen]
        if times:
            found |= {f"{task}_ms": float(np.median(times)), f"{task}_ms_p95": float(np.percentile(times, 95))}
    return found


def _choose(traffic: Sequence[Traffic], task: Task, requests: int) -> list[tuple[Traffic, str]]:
    """So many queries, from all data sets in turn; to rerank, only those that have something to rerank."""
    turns = [
        [(source, query) for query in source.queries if task is Task.EMBEDDING or source.candidates.get(query)]
        for source in traffic
    ]
    in_turn = (pair for pair in chain.from_iterable(zip_longest(*turns)) if pair is not None)
    return list(islice(in_turn, requests))


def _milliseconds(model: UnifiedModel, source: Traffic, query: str, task: Task, depth: int) -> float:
    text = source.dataset.queries[query]
    request: Callable[[], object]
    if task is Task.EMBEDDING:

        def request() -> object:
            return encode(model, model.prompter.queries([text], source.instruction))

    else:
        shortlist = cut({query: source.candidates.get(query, {})}, depth)

        def request() -> object:
            return rerank(model, source.dataset, {query: text}, shortlist, instruction=source.instruction)

    request()
    _wait(model)
    started = time.perf_counter()
    request()
    # Results are on the CPU by then, so a GPU has finished too.
    return 1e3 * (time.perf_counter() - started)


def _wait(model: UnifiedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
