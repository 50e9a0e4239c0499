"""Encoding speed: against sentence-transformers with the same adapter merged, and what routing costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from unimoer.benchmarks.arms import shares, stirred
from unimoer.benchmarks.pairs import Ratio, alternate, report
from unimoer.config import AdapterConfig, ModelConfig, PromptConfig, TaskHeadConfig
from unimoer.data.embedded import load_embedded
from unimoer.errors import UserError
from unimoer.model.backbone import load_backbone, resolve_dtype
from unimoer.model.inference import encode, usual_budget
from unimoer.model.merging import merge, updates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

LONGEST = 128
"""Tokens of a document."""
DOMAINS = ("attack", "cwe", "hpo", "code")


def _build(base: str, layers: int, adapter: AdapterConfig, device: torch.device) -> UnifiedModel:
    config = ModelConfig(
        base=base,
        layers=layers,
        adapter=adapter,
        embedding=TaskHeadConfig(pooling="mean"),
        prompts=PromptConfig(query="{query}", document="{document}", append_eos=False, max_document_tokens=LONGEST),
    )
    return stirred(config, device)


def _documents(texts: int) -> list[str]:
    return [
        document.content
        for domain in DOMAINS
        for document in list(load_embedded(domain).corpus.values())[: texts // len(DOMAINS)]
    ]


def _queries(texts: int) -> list[str]:
    """For requests that come one at a time, as from a search box."""
    return [
        query for domain in DOMAINS for query in list(load_embedded(domain).queries.values())[: texts // len(DOMAINS)]
    ]


def _encoder(model: UnifiedModel, sample: Sequence[str], *, one_by_one: bool = False) -> Callable[[], np.ndarray]:
    if one_by_one:
        return lambda: np.concatenate([encode(model, model.prompter.queries([text])) for text in sample])
    return lambda: encode(model, model.prompter.documents(sample), batch_tokens=usual_budget(model.device))


def _title(sample: Sequence[str], one_by_one: bool, setting: str) -> str:
    what = "queries, one at a time" if one_by_one else f"documents of up to {LONGEST} tokens"
    return f"encoding {len(sample)} {what}, {setting}"


def _void(_: object) -> None: ...


def bench_encode(
    console: Console,
    device: torch.device,
    *,
    base: str,
    layers: int,
    rank: int,
    texts: int,
    pairs: int,
    one_by_one: bool = False,
) -> Ratio:
    """Texts per second, tokenisation included, over documents (or single queries) of all four embedded domains.

    Raises:
        UserError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    except ImportError:
        raise UserError("bench encode: the peer is missing; pip install 'unimoer[bench]'") from None
    ours = _build(base, layers, AdapterConfig(rank=rank, alpha=2 * rank), device)
    sample = _queries(texts) if one_by_one else _documents(texts)
    plain, tokenizer = load_backbone(ours.config, device)
    merge(plain, updates(ours, Task.EMBEDDING))
    ours.for_inference()
    with tempfile.TemporaryDirectory() as folder:
        cast(Any, plain.base_model).save_pretrained(folder)
        # With a chat template, sentence-transformers would wrap every text as a message.
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        dtype = resolve_dtype("auto", device)
        body = Transformer(folder, max_seq_length=LONGEST, model_kwargs={"dtype": dtype})
        pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean")
        peer = SentenceTransformer(modules=[body, pooling, Normalize()], device=str(device))

    def with_peer(size: int) -> Callable[[], None]:
        # A search box has one query, and asks for its vector before it has the next.
        calls = [[text] for text in sample] if one_by_one else [sample]
        return lambda: _void([peer.encode(texts, batch_size=size, show_progress_bar=False) for texts in calls])

    own = _encoder(ours, sample, one_by_one=one_by_one)
    agreement = float((own() * peer.encode(sample, batch_size=32)).sum(1).mean())
    if agreement < 0.99:
        raise RuntimeError(f"the two systems embed differently (mean cosine {agreement:.3f}): nothing to compare")
    sizes = (1,) if one_by_one else (32, 128)
    contenders = {f"sentence-transformers, batch {size}": with_peer(size) for size in sizes}
    peer_name = next(iter(contenders))
    seconds = alternate({"unimoer": lambda: _void(own()), **contenders}, device=device, pairs=pairs, warmup=1)
    title = _title(sample, one_by_one, f"{layers} layers of {base}, {device}")
    extra = {
        "bench": "latency --peer" if one_by_one else "encode",
        "texts": len(sample),
        "layers": layers,
        "rank": rank,
        "mean_cosine": agreement,
    }
    return report(console, title, "texts", len(sample), seconds, ours="unimoer", peer=peer_name, extra=extra)


def bench_encode_arms(
    console: Console,
    device: torch.device,
    *,
    base: str,
    layers: int,
    rank: int,
    texts: int,
    pairs: int,
    one_by_one: bool = False,
) -> Ratio:
    """What routing costs: three experts with routers against the same experts with fixed weights, all as served.

    Beside them stand a hard switch between two experts, and one LoRA of the same rank, which merges into the base:
    experts cannot be merged.
    """
    sample = _queries(texts) if one_by_one else _documents(texts)
    experts = shares(rank)

    def run(router: dict[str, object] | None, experts: dict[str, int] = experts) -> Callable[[], None]:
        adapter: dict[str, object] = {"rank": rank, "alpha": 2 * rank}
        if router is not None:
            adapter |= {"experts": experts, "router": router}
        model = _build(base, layers, AdapterConfig.model_validate(adapter), device).for_inference()
        encoder = _encoder(model, sample, one_by_one=one_by_one)
        return lambda: _void(encoder())

    contenders = {
        "routed, sequence": run({"type": "sparsegen", "granularity": "sequence"}),
        "routed, causal": run({"type": "sparsegen", "granularity": "causal"}),
        "routed, token": run({"type": "sparsegen", "granularity": "token"}),
        "fixed weights": run({"type": "uniform"}),
        "hard switch": run({"type": "hard"}, {task.value: rank // 2 for task in Task}),
        "one LoRA, merged": run(None),
    }
    seconds = alternate(contenders, device=device, pairs=pairs, warmup=1)
    title = _title(sample, one_by_one, f"{layers} layers of {base}, rank {rank}, {device}")
    extra: dict[str, object] = {"bench": "latency" if one_by_one else "encode --arms", "texts": len(sample)}
    extra |= {"layers": layers, "rank": rank}
    extra["ratios"] = {
        f"{name} to {peer}": Ratio(
            tuple(theirs / own for own, theirs in zip(seconds[name], seconds[peer], strict=True))
        ).to_json()
        for peer in ("fixed weights", "one LoRA, merged")
        for name in contenders
        if name not in ("fixed weights", "one LoRA, merged")
    }
    # Of batches routing itself is the question; alone, a query pays for every small product of the experts.
    peer = "one LoRA, merged" if one_by_one else "fixed weights"
    return report(console, title, "texts", len(sample), seconds, ours="routed, sequence", peer=peer, extra=extra)
