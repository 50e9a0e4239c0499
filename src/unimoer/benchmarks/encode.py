"""Encoding speed against sentence-transformers on the same base with the adapter merged into its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from unimoer.benchmarks.pairs import Ratio, alternate, report
from unimoer.config import AdapterConfig, ModelConfig, PromptConfig, TaskHeadConfig
from unimoer.data.embedded import load_embedded
from unimoer.errors import UserError
from unimoer.evaluation.inference import encode
from unimoer.model.backbone import load_backbone, resolve_dtype
from unimoer.model.merging import merge, updates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task


def bench_encode(
    console: Console, device: torch.device, *, base: str, layers: int, rank: int, texts: int, pairs: int
) -> Ratio:
    """Texts per second, tokenisation included, over documents of all four embedded domains.

    Raises:
        UserError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Normalize, Pooling, Transformer
    except ImportError:
        raise UserError("bench encode: the peer is missing; pip install 'unimoer[bench]'") from None
    longest = 128
    config = ModelConfig(
        base=base,
        layers=layers,
        adapter=AdapterConfig(rank=rank, alpha=2 * rank),
        embedding=TaskHeadConfig(pooling="mean"),
        prompts=PromptConfig(document="{document}", append_eos=False, max_document_tokens=longest),
    )
    ours = UnifiedModel(config, device)
    # An untrained B is zero; a merge of nothing would prove nothing.
    torch.manual_seed(0)
    for name, parameter in ours.trainable().items():
        if ".b." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    sample = [
        document.content
        for domain in ("attack", "cwe", "hpo", "code")
        for document in list(load_embedded(domain).corpus.values())[: texts // 4]
    ]
    plain, tokenizer = load_backbone(config, device)
    merge(plain, updates(ours, Task.EMBEDDING))
    ours.for_inference()
    with tempfile.TemporaryDirectory() as folder:
        cast(Any, plain.base_model).save_pretrained(folder)
        # With a chat template, sentence-transformers would wrap every text as a message.
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        dtype = resolve_dtype("auto", device)
        body = Transformer(folder, max_seq_length=longest, model_kwargs={"dtype": dtype})
        pooling = Pooling(body.get_embedding_dimension(), pooling_mode="mean")
        peer = SentenceTransformer(modules=[body, pooling, Normalize()], device=str(device))

    def with_peer(size: int) -> Callable[[], None]:
        return lambda: void(peer.encode(sample, batch_size=size, show_progress_bar=False))

    def void(_: object) -> None: ...

    def own() -> np.ndarray:
        return encode(ours, ours.prompter.documents(sample))

    agreement = float((own() * peer.encode(sample, batch_size=32)).sum(1).mean())
    if agreement < 0.99:
        raise RuntimeError(f"the two systems embed differently (mean cosine {agreement:.3f}): nothing to compare")
    contenders: dict[str, Callable[[], None]] = {
        "unimoer": lambda: void(own()),
        "sentence-transformers, batch 32": with_peer(32),
        "sentence-transformers, batch 128": with_peer(128),
    }
    seconds = alternate(contenders, pairs=pairs, warmup=1)
    peer_name = "sentence-transformers, batch 32"
    title = f"encoding {len(sample)} documents of up to {longest} tokens, {layers} layers of {base}, {device}"
    extra = {"bench": "encode", "texts": len(sample), "layers": layers, "rank": rank, "mean_cosine": agreement}
    return report(console, title, "texts", len(sample), seconds, ours="unimoer", peer=peer_name, extra=extra)
