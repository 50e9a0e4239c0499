"""Reranking speed: one query against its documents, with the query computed once, against whole prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console

from unimoer.benchmarks.arms import shares, stirred
from unimoer.benchmarks.pairs import Ratio, alternate, report
from unimoer.config import AdapterConfig, ModelConfig, TaskHeadConfig
from unimoer.data.collate import pad
from unimoer.data.embedded import load_embedded
from unimoer.model.backbone import load_backbone
from unimoer.model.inference import length_batches, score, usual_budget
from unimoer.model.merging import merge, updates
from unimoer.model.scoring import score_candidates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

SIZES = (8, 16, 50)
"""Rows of a batch of the peer."""
ALIKE = 0.95
"""Correlation of scores: an untrained head tells documents apart by little more than bfloat16 rounds off."""


def _build(base: str, layers: int, adapter: dict[str, Any], device: torch.device) -> UnifiedModel:
    """Causal, with the default prompts and the head that answers yes or no."""
    config = ModelConfig(
        base=base,
        layers=layers,
        adapter=AdapterConfig.model_validate(adapter),
        embedding=TaskHeadConfig(pooling="mean"),
    )
    return stirred(config, device)


def _peer(
    model: UnifiedModel, query: str, documents: Sequence[str], device: torch.device
) -> Callable[[int], np.ndarray]:
    """Whole prompts in `transformers`, sorted by length, with the same weights merged: rows of a batch -> scores."""
    plain, _ = load_backbone(model.config, device)
    merge(plain, updates(model, Task.RERANKING))
    body: Any = plain.base_model
    difference = model.head.get_buffer("difference")

    @torch.inference_mode()
    def run(rows: int) -> np.ndarray:
        ids = model.prompter.pairs([query] * len(documents), documents)
        lengths = [len(row) for row in ids]
        found = np.empty(len(ids), np.float32)
        for batch in length_batches(lengths, batch_tokens=rows * max(lengths), multiple=1):
            for start in range(0, len(batch), rows):
                chosen = batch[start : start + rows]
                tokens = pad([ids[row] for row in chosen], pad_id=model.tokenizer.pad_token_id, padding="left")
                tokens = tokens.to(str(device))
                states = body(
                    input_ids=tokens.input_ids,
                    attention_mask=tokens.attention_mask,
                    position_ids=tokens.position_ids,
                    use_cache=False,
                ).last_hidden_state
                found[chosen] = (states[:, -1].float() @ difference).cpu().numpy()
        return found

    return run


def bench_rerank(
    console: Console,
    device: torch.device,
    *,
    base: str,
    layers: int,
    rank: int,
    domain: str,
    documents: int,
    pairs: int,
) -> Ratio:
    """Documents per second of one query, tokenisation included; the peer's best batch size counts."""
    dataset = load_embedded(domain)
    listed = [document.content for document in dataset.corpus.values()][:documents]
    query = next(iter(dataset.queries.values()))
    plain = _build(base, layers, {"rank": rank, "alpha": 2 * rank}, device)
    peer = _peer(plain, query, listed, device)
    plain.for_inference()

    def arm(router: dict[str, Any], experts: dict[str, int]) -> UnifiedModel:
        adapter = {"rank": rank, "alpha": 2 * rank, "experts": experts, "router": router}
        return _build(base, layers, adapter, device).for_inference()

    halves = {task.value: rank // 2 for task in Task}
    systems = {
        "query once, one LoRA merged": plain,
        "query once, hard switch": arm({"type": "hard"}, halves),
        "query once, routed by token": arm({"type": "sparsegen", "granularity": "token"}, shares(rank)),
        "query once, routed causally": arm({"type": "sparsegen", "granularity": "causal"}, shares(rank)),
    }

    def ours(model: UnifiedModel) -> Callable[[], None]:
        return lambda: _void(score_candidates(model, [query], [listed], batch_tokens=usual_budget(device)))

    def whole(model: UnifiedModel) -> Callable[[], None]:
        return lambda: _void(
            score(model, model.prompter.pairs([query] * len(listed), listed), batch_tokens=usual_budget(device))
        )

    _agree(score_candidates(plain, [query], [listed])[0], peer(16))
    contenders = {name: ours(model) for name, model in systems.items()}
    contenders["whole prompts, one LoRA merged"] = whole(plain)
    for size in SIZES:
        contenders[f"transformers, batch {size}"] = _with_size(peer, size)
    seconds = alternate(contenders, device=device, pairs=pairs, warmup=1)
    best = min((f"transformers, batch {size}" for size in SIZES), key=lambda name: float(np.median(seconds[name])))
    words = np.mean([len(text.split()) for text in listed])
    title = f"one query, {len(listed)} documents of {domain} ({words:.0f} words), {layers} layers of {base}, {device}"
    extra: dict[str, object] = {"bench": "rerank", "domain": domain, "documents": len(listed), "layers": layers}
    extra["ratios"] = {
        name: Ratio(tuple(b / a for a, b in zip(seconds[name], seconds[best], strict=True))).to_json()
        for name in contenders
        if name != best
    }
    first = next(iter(systems))
    return report(console, title, "documents", len(listed), seconds, ours=first, peer=best, extra=extra)


def _with_size(run: Callable[[int], np.ndarray], size: int) -> Callable[[], None]:
    return lambda: _void(run(size))


def _agree(own: np.ndarray, other: np.ndarray) -> None:
    """Raises: RuntimeError when the two do not compute the same scores."""
    found = float(np.corrcoef(own, other)[0, 1])
    if found < ALIKE:
        raise RuntimeError(f"the two systems score differently (correlation {found:.3f}): nothing to compare")


def _void(_: object) -> None: ...
