"""Memory and time of indexing, mining and encoding a large synthetic corpus, each stage in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from unimoer.data.bm25 import BM25
from unimoer.data.corpus import Contents, DiskCorpus, open_corpus
from unimoer.data.negatives import mine
from unimoer.errors import UserError
from unimoer.types import RetrievalDataset

VOCABULARY, LENGTH, QUERY = 1_000_000, 55, 6
"""Different words; words a passage and a query, about those of MS MARCO."""
STOP_WORDS = (
    *("the", "of", "and", "to", "a", "in", "is", "it", "for", "that", "as", "was", "with", "be"),
    *("on", "not", "by", "this", "are", "or", "at", "if", "an", "they", "but", "no"),
)
"""The most frequent ranks: a third of running text, and left out by BM25."""
RANDOM = "random"
"""The base that is made on the spot: what costs memory then is the path and not the model."""


def write_corpus(path: Path, passages: int) -> None:
    """Passages whose words follow Zipf's law: the word of rank r has probability 1/r, up to a constant."""
    generator = np.random.default_rng(0)
    cumulated = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    with path.open("w", encoding="utf-8") as file:
        for number in range(passages):
            length = int(generator.integers(LENGTH - 25, LENGTH + 26))
            ranks = np.searchsorted(cumulated, generator.random(length) * cumulated[-1])
            text = " ".join(map(_word, ranks.tolist()))
            file.write(json.dumps({"_id": str(number), "title": "", "text": text}) + "\n")


@cache
def _word(rank: int) -> str:
    """Syllables, so that words stem and split into tokens somewhat as words do."""
    if rank < len(STOP_WORDS):
        return STOP_WORDS[rank]
    word = ""
    while rank:
        rank, syllable = divmod(rank, 75)
        word += "bdfgklmnprstvxz"[syllable // 5] + "aeiou"[syllable % 5]
    return word


def _queries(corpus: DiskCorpus, count: int) -> RetrievalDataset:
    """Words drawn from passages, each relevant to its own query."""
    generator = np.random.default_rng(1)
    queries, qrels = {}, {}
    for number in range(count):
        key = str(int(generator.integers(len(corpus))))
        queries[f"q{number}"] = " ".join(generator.choice(corpus[key].text.split(), QUERY))
        qrels[f"q{number}"] = {key: 1}
    return RetrievalDataset("synthetic", corpus, queries, {"train": qrels})


def _corpus(folder: Path, passages: int, **_: Any) -> int:
    write_corpus(folder / "corpus.jsonl", passages)
    return passages


def _open(folder: Path, **_: Any) -> int:
    return len(open_corpus(folder / "corpus.jsonl"))


def _index(folder: Path, **_: Any) -> int:
    corpus = open_corpus(folder / "corpus.jsonl")
    return len(BM25.of(RetrievalDataset("synthetic", corpus, {}, {}), folder=folder / "index").document_ids)


def _mine(folder: Path, queries: int, **_: Any) -> int:
    dataset = _queries(open_corpus(folder / "corpus.jsonl"), queries)
    return len(mine(dataset, "train", scorer=BM25.load(folder / "index")))


def _encode(folder: Path, encode: int, base: str, layers: int | None, **_: Any) -> int:
    import torch

    from unimoer.config import ModelConfig
    from unimoer.model.inference import encode_to
    from unimoer.model.unified import UnifiedModel

    corpus = open_corpus(folder / "corpus.jsonl")
    keys = [key for key, _ in zip(corpus, range(encode), strict=False)]
    if base == RANDOM:
        base = str(_random_base(folder / "base", Contents(corpus, keys)[:1000]))
    pooled = {"pooling": "mean"}
    config = ModelConfig.model_validate(
        {"base": base, "layers": layers, "embedding": pooled, "reranking": {**pooled, "head": "linear"}}
    )
    model = UnifiedModel(config, torch.device("cpu")).for_inference()
    encode_to(folder / "vectors.npy", model, Contents(corpus, keys), model.prompter.documents, identity="bench")
    return len(keys)


def _search(folder: Path, queries: int, **_: Any) -> int:
    from unimoer.evaluation.search import top_k

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    asked = np.random.default_rng(2).normal(size=(queries, vectors.shape[1])).astype(np.float32)
    keys = [str(number) for number in range(len(vectors))]
    return len(top_k(asked, vectors, [f"q{number}" for number in range(queries)], keys, 100))


STAGES: dict[str, tuple[Callable[..., int], str]] = {
    "write the corpus": (_corpus, "passages"),
    "open it": (_open, "passages"),
    "index": (_index, "passages"),
    "mine": (_mine, "queries"),
    "encode": (_encode, "passages"),
    "search the vectors": (_search, "queries"),
}


def _random_base(folder: Path, texts: list[str]) -> Path:
    """A decoder of two narrow layers with random weights, and a tokenizer of the texts."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    core = ByteLevelBPETokenizer()
    core.train_from_iterator(texts, vocab_size=4000, special_tokens=["<|end|>"], show_progress=False)
    words = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """Bytes of resident memory at their highest: `peak`, of all pages, and `own`, without those of mapped files.

    The system keeps the first; the second is looked at ten times a second. Pages of mapped files give way when memory
    is short.
    """
    found = {"peak": 0, "own": 0}
    ended = threading.Event()

    def watch() -> None:
        while True:
            found["own"] = max(found["own"], _status("RssAnon"))
            if ended.wait(0.1):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found["peak"] = _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise UserError("bench scale: needs Linux; /proc/self/status has no " + field)


def print_child(stage: str, settings: dict[str, Any]) -> None:
    """Run one stage in this process and print what it took as one JSON object."""
    run, _ = STAGES[stage]
    started, busy = time.perf_counter(), time.process_time()
    with _watched() as memory:
        amount = run(**{**settings, "folder": Path(settings["folder"])})
    seconds = {"seconds": time.perf_counter() - started, "processor": time.process_time() - busy}
    print(json.dumps({"amount": amount, **seconds, **memory}))  # noqa: T201


def _measure(stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    code = f"from unimoer.benchmarks import scale; scale.print_child({stage!r}, {settings!r})"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"bench scale: the process that should {stage} failed")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def bench_scale(
    console: Console,
    *,
    passages: int,
    queries: int,
    encode: int,
    base: str,
    layers: int | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Each stage's time, rate and peak of memory as a table, and as one JSON object in the last line.

    Beside the time that passed stands the time that cores worked, which other programs on the machine change less.
    Files lie in a new folder inside `folder` (the system's for temporary files unless given), and go at the end.
    """
    results = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="unimoer-scale-") as work:
        settings = {"folder": work, "passages": passages, "queries": queries, "encode": min(encode, passages)}
        settings |= {"base": base, "layers": layers}
        for stage in STAGES:
            results[stage] = _measure(stage, settings)
        for name in ("corpus.jsonl", "vectors.npy"):
            results[name] = {"bytes": (Path(work) / name).stat().st_size}
        results["index files"] = {"bytes": sum(path.stat().st_size for path in (Path(work) / "index").iterdir())}
    table = Table(title=f"{passages:,} passages of {LENGTH} words, {queries:,} queries", title_justify="left")
    for column in ("stage", "amount", "seconds", "of a core", "rate", "peak memory", "without mapped files"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, (_, unit) in STAGES.items():
        found = results[stage]
        rate = f"{found['amount'] / found['seconds']:,.0f} {unit}/s"
        memory = [f"{found[name] / 2**20:,.0f} MiB" for name in ("peak", "own")]
        seconds = [f"{found[name]:,.1f}" for name in ("seconds", "processor")]
        table.add_row(stage, f"{found['amount']:,}", *seconds, rate, *memory)
    console.print(table)
    line = {"bench": "scale", "passages": passages, "queries": queries, "base": base, "stages": results}
    print(json.dumps(line))  # noqa: T201
    return line
