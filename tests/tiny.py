"""A whole world in seconds and offline: a tokenizer, random decoders, two learnable data sets, an experiment."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import torch
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from unimoer.config import ModelConfig, StudyConfig, TrainSpec, parse_config
from unimoer.data.collate import Collator, pad
from unimoer.data.prepare import TrainingDomain, prepare
from unimoer.model.unified import UnifiedModel
from unimoer.studies import find_study, planning, run
from unimoer.training import setup
from unimoer.training.loop import train
from unimoer.training.parallel import ALONE, Group
from unimoer.training.state import Counters
from unimoer.types import (
    Document,
    EmbeddingBatch,
    RerankingBatch,
    RetrievalDataset,
    Task,
    TokenBatch,
)

FUSED = ("qwen3", "llama", "qwen2", "mistral")
HOSTED = ("olmo2", "gemma", "mistral_sliding")
CPU = torch.device("cpu")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

COLOURS = ("red", "green", "blue", "white", "black", "golden")
THINGS = {
    "kitchen": ("kettle", "plate", "spoon", "bowl", "oven"),
    "garden": ("shovel", "fence", "flower", "bench", "pond"),
}
PLACES = ("stands in the corner", "lies near the window", "is kept behind the door", "was made by hand", "is very old")
QUESTIONS = ("where is the {}", "tell me about the {}", "find my {}", "who owns the {}")


def dataset(domain: str) -> RetrievalDataset:
    """Thirty documents; every one has two training queries, every second one a test query in other words."""
    corpus: dict[str, Document] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "test": {}}
    for number, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS[domain]):
        name, key = f"{colour} {thing}", f"d{number}"
        corpus[key] = Document(f"The {name} {PLACES[number % len(PLACES)]} of the {domain}.", name)
        for question in QUESTIONS[:2]:
            query = f"q{len(queries)}"
            queries[query] = question.format(name)
            qrels["train"][query] = {key: 1}
        if number % 2 == 0:
            query = f"q{len(queries)}"
            queries[query] = QUESTIONS[2 + number % 4 // 2].format(name)
            qrels["test"][query] = {key: 1}
    return RetrievalDataset(domain, corpus, queries, qrels)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in the manner of Qwen: any text round-trips, `yes` and `no` are one token each."""
    core = Tokenizer(models.BPE())
    # Qwen2's rule in short: words with a leading space, digits one by one, punctuation, line breaks.
    rule = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(rule, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["yes\nno\n"] * 200
    for domain in THINGS:
        data = dataset(domain)
        texts += [document.content for document in data.corpus.values()] + list(data.queries.values())
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[0], pad_token=SPECIAL[0])


def _config(family: str, vocabulary: int) -> PreTrainedConfig:
    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        # Large enough that attention is far from uniform: small random weights would hide a wrong mask or rotation.
        "initializer_range": 0.25,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    match family:
        case "qwen3":
            return Qwen3Config(**shared, head_dim=16, tie_word_embeddings=True)
        case "llama":
            # Biases everywhere, and the rotation of Llama 3.
            rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
            return LlamaConfig(**shared, attention_bias=True, mlp_bias=True, rope_parameters=rope)
        case "qwen2":
            return Qwen2Config(**shared)
        case "mistral":
            return MistralConfig(**shared, head_dim=12, sliding_window=None)
        case "mistral_sliding":
            return MistralConfig(**shared, sliding_window=4)
        case "olmo2":
            return Olmo2Config(**shared)
        case "gemma":
            return GemmaConfig(**shared, head_dim=8)
    raise ValueError(family)


def causal_lm(family: str, vocabulary: int) -> PreTrainedModel:
    """A random decoder whose norms and biases are not the ones and zeros they start as."""
    torch.manual_seed(sum(family.encode()))
    model = Causal.from_config(_config(family, vocabulary), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def save_base(family: str, folder: Path) -> Path:
    """A folder as `save_pretrained` leaves it, tokenizer included."""
    words = tokenizer()
    causal_lm(family, len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


PROMPTS = {
    "query": "{query}",
    "document": "{document}",
    "pair": "{query}\n{document}",
    "max_query_tokens": 16,
    "max_document_tokens": 32,
}
"""Short, for speed; the Qwen3 defaults have tests of their own."""


def model_config(base: Path | str, **changes: Any) -> ModelConfig:
    """Float32, rank 4, mean pooling with a linear head; `changes` replace whole fields."""
    content: dict[str, Any] = {
        "base": str(base),
        "dtype": "float32",
        "adapter": {"rank": 4, "alpha": 8.0},
        "embedding": {"pooling": "mean"},
        "reranking": {"pooling": "mean", "head": "linear"},
        "prompts": PROMPTS,
    }
    return ModelConfig.model_validate(content | changes)


def build(base: Path, *, seed: int = 0, noise: float = 0.0, **changes: Any) -> UnifiedModel:
    """A model on the CPU; with `noise`, its adapters are no longer neutral."""
    model = UnifiedModel(model_config(base, **changes), CPU, seed=seed)
    if noise:
        stir(model, noise, seed)
    return model


def stir(model: torch.nn.Module, noise: float, seed: int = 0) -> None:
    """Add noise to whatever is trained."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))


def ids(lengths: Iterable[int], *, vocabulary: int = 300, seed: int = 0) -> list[list[int]]:
    """Random token ids above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def batch(sequences: Sequence[Sequence[int]], padding: str = "right", multiple: int = 1) -> TokenBatch:
    return pad(sequences, pad_id=0, padding=padding, multiple=multiple)  # type: ignore[arg-type]


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over the size of what was expected: rounding scales with the tensor, not with its single numbers."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def experiment(base: Path, data: Mapping[str, Path], **changes: Any) -> dict[str, Any]:
    """The content of a configuration file: three arms, two domains, seconds of training.

    `changes` are dotted: `{"training.optimizer.lr": 1e-3}` as keyword `training__optimizer__lr=1e-3`.
    """
    content: dict[str, Any] = {
        "name": "tiny",
        "seeds": [1],
        "model": model_config(base).model_dump(mode="json"),
        "data": {
            "domains": {name: {"source": str(folder)} for name, folder in data.items()},
            "negatives": {"num_negatives": 6},
        },
        "training": {
            "embedding": {"steps": 6, "batch_size": 6, "negatives": 1, "random_until": 0.5},
            "reranking": {"steps": 6, "batch_size": 4, "negatives": 2},
            "optimizer": {"lr": 1e-2},
            "probe": {"every": 4, "batch_size": 4},
            "checkpoint_every": 2,
        },
        "evaluation": {
            "suites": {
                "test": {
                    "collections": {name: {"source": str(folder)} for name, folder in data.items()},
                    "queries": 8,
                    "rerank_depth": 8,
                }
            },
        },
    }
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = copy.deepcopy(value)
    return content


def parsed(content: Mapping[str, Any]) -> StudyConfig:
    return parse_config(dict(content), "tiny")


class InterruptedRunError(Exception):
    """Stands for whatever stops a run between two steps."""


class Recorder(Collator):
    """Keeps the token ids of every batch, by task and in order."""

    seen: dict[Task, list[list[list[list[int]]]]]

    def embedding(self, *arguments: Any) -> EmbeddingBatch:
        found = super().embedding(*arguments)
        self.seen[Task.EMBEDDING].append([found.queries.input_ids.tolist(), found.documents.input_ids.tolist()])
        return found

    def reranking(self, *arguments: Any) -> RerankingBatch:
        found = super().reranking(*arguments)
        self.seen[Task.RERANKING].append([part.input_ids.tolist() for part in found.texts])
        return found


@dataclass
class Trained:
    model: UnifiedModel
    counters: Counters
    seen: dict[Task, list[list[list[list[int]]]]]


def train_spec(config: StudyConfig, name: str, *, seed: int = 1) -> TrainSpec:
    """What a run of an arm trains, resolved."""
    return planning.train_spec(config, name, seed, CPU)


def arm_model(config: StudyConfig, arm: str, *, seed: int = 1) -> UnifiedModel:
    """What an arm trains, before it does."""
    return UnifiedModel(train_spec(config, arm).model, CPU, seed=seed)


def domains(config: StudyConfig) -> dict[str, TrainingDomain]:
    return prepare(config.data)


def train_arm(
    config: StudyConfig,
    arm: str,
    folder: Path,
    *,
    seed: int = 1,
    stop_after: int | None = None,
    model: UnifiedModel | None = None,
    keep: Sequence[int] = (),
    group: Group = ALONE,
) -> Trained:
    """One arm through the real loop, tracker and probe; raises `InterruptedRunError` after a step when told to.

    `model` stands in for the arm's fresh one.
    """
    spec = train_spec(config, arm, seed=seed)
    model = UnifiedModel(spec.model, CPU, seed=seed) if model is None else model
    seen: dict[Task, list[list[list[list[int]]]]] = {task: [] for task in Task}
    real = setup.build

    def recorded(*arguments: Any, **options: Any) -> setup.Run:
        run = real(*arguments, **options)
        # The probe keeps the collator that it was built with: what it reads is no part of the curriculum.
        run.collator = copy.copy(run.collator)
        run.collator.__class__ = Recorder
        run.collator.seen = seen  # type: ignore[attr-defined]
        return run

    def stop(step: int, *_: object) -> None:
        if step == stop_after:
            raise InterruptedRunError

    with mock.patch("unimoer.training.loop.build", recorded):
        counters = train(spec, model, domains(config), folder, keep=keep, progress=stop, group=group)
    return Trained(model, counters, seen)


def write_yaml(content: Mapping[str, Any], path: Path) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def environment(cache: Path) -> dict[str, str]:
    """For subprocesses, which do not inherit the blocked sockets: nothing may reach a network by way of the hub."""
    wanted = {"HF_HUB_OFFLINE": "1", "UNIMOER_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    wanted |= {"PYTHONUNBUFFERED": "1", "WANDB_MODE": "offline", "WANDB_CACHE_DIR": str(cache)}
    return {**os.environ, **wanted}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "unimoer", *map(str, arguments)]


def unimoer(*arguments: str | Path, cache: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, to its end."""
    return subprocess.run(
        command(*arguments), env=environment(cache), cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )


def write_gguf(base: Path, path: Path) -> Path:
    """The tiny Qwen2 of `save_base` as one GGUF file in float32, as llama.cpp's converter lays it out."""
    model = Causal.from_pretrained(base, dtype=torch.float32)
    config, words = model.config, json.loads((base / "tokenizer.json").read_text())
    vocabulary = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    control, normal = 3, 1
    writer.add_token_types([control if token in SPECIAL else normal for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in words["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run_study(content: dict[str, Any], folder: Path, study: str = "kill-gate", **options: Any) -> str:
    """A whole study in this process; returns what it printed."""
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    run.run_study(
        find_study(study), parsed(content), folder, command="test", console=console, **{"device": CPU} | options
    )
    return printed.getvalue()
