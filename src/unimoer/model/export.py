"""A trained model in the formats of other programs: LoRA adapters of PEFT, or plain `transformers` models.

Files are written by hand rather than by PEFT and sentence-transformers, which the package does not depend on; tests
load them with both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from unimoer import __version__
from unimoer.config import ModelConfig
from unimoer.errors import UserError
from unimoer.files import new_folder, write_json, write_text
from unimoer.model.backbone import load_backbone, quiet, read_architecture
from unimoer.model.checkpoint import GOLDEN_DOCUMENT, fingerprint, save_tensors
from unimoer.model.export_readme import readme
from unimoer.model.head_table import HEADS
from unimoer.model.merging import Update, merge, placed, updates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

Format = Literal["peft", "merged"]
FORMAT = 1


def check_new(folder: Path) -> None:
    """Raises: UserError when the folder exists."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another --output, or remove it")


def check_pairs(config: ModelConfig, tasks: Sequence[Task]) -> None:
    """Raises: UserError when reranking is to be exported, and its head has no recipe for other programs."""
    head = config.reranking
    if Task.RERANKING in tasks and HEADS[head.head].recipe is None:
        instead = "; --task embedding exports the rest" if Task.EMBEDDING in tasks else ""
        why = (
            "reads a query with all its candidates, which no other format says"
            if head.kind.reads_lists
            else "has no recipe, which code without this package would need"
        )
        raise UserError(f"head '{head.head}' {why}{instead}")


def export_model(
    model: UnifiedModel, output: Path, *, form: Format = "peft", tasks: Sequence[Task] = tuple(Task)
) -> list[Path]:
    """Write `OUTPUT/<task>/` for each task, all or nothing; returns the folders.

    `peft`: `adapter_config.json` and `adapter_model.safetensors`, for `PeftModel.from_pretrained`. `merged`: a
    `transformers` model with its tokenizer; that of embedding loads in sentence-transformers too. In both, beside
    them, `export.json` (prompts, pooling, score head), a `README.md` with code that runs, and a learned score head.
    A merged export loads the base once more.

    Raises:
        UserError: the weights of experts depend on the text, `output` exists or cannot be written, or the format
            cannot express the task.
    """
    check_new(output)
    check_pairs(model.config, tasks)
    found = {task: updates(model, task) for task in tasks}
    with new_folder(output) as temporary:
        for task in tasks:
            folder = temporary / task.value
            folder.mkdir()
            about = _describe(model, task)
            if form == "peft":
                _write_adapter(model, task, found[task], about, folder)
            else:
                _write_merged(model, task, found[task], folder)
            learned = model.head.state_dict()
            if task is Task.RERANKING and learned:
                save_tensors(learned, folder / "score_head.safetensors")
            write_json(folder / "export.json", about)
            write_text(folder / "README.md", readme(about, form))
    return [output / task.value for task in tasks]


def _describe(model: UnifiedModel, task: Task) -> dict[str, Any]:
    """The content of `export.json`: all that turns texts into this task's numbers, but for the weights."""
    config, name = model.config, str(read_architecture(model.config).name_or_path)
    way = config.embedding if task is Task.EMBEDDING else config.reranking
    kinds = {"query", "document"} if task is Task.EMBEDDING else {"pair"}
    shared = {"instruction", "max_query_tokens", "max_document_tokens"}
    about: dict[str, Any] = {
        "format": FORMAT,
        "unimoer": __version__,
        "task": task.value,
        "base": {
            "name": config.base,
            "location": str(Path(name).resolve()) if Path(name).is_dir() else name,
            "revision": config.revision or "main",
            "layers": config.layers,
            "dtype": str(_frozen(model).dtype).removeprefix("torch."),
            "fingerprint": fingerprint(model),
        },
        "pooling": way.pooling,
        "attention": way.attention,
        "prompts": config.prompts.model_dump(mode="json", include=kinds | shared),
        "first_ids": model.prompter._prefix,
        "last_ids": model.prompter._suffix if task is Task.EMBEDDING else [],
    }
    if task is Task.RERANKING:
        about["head"] = {"type": config.reranking.head, **model.head.describe()}
    return about


def _frozen(model: UnifiedModel) -> Tensor:
    return next(p for p in model.decoder.parameters() if not p.requires_grad)


def _write_adapter(
    model: UnifiedModel, task: Task, found: Mapping[str, Update], about: Mapping[str, Any], folder: Path
) -> None:
    if not found:
        raise UserError(f"{task}: its experts have rank 0 in every layer; there is no adapter to export")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(read_architecture(model.config))]
    prefix = kind.base_model_prefix
    tensors: dict[str, Tensor] = {}
    for path, update in found.items():
        tensors[f"base_model.model.{prefix}.{path}.lora_A.weight"] = update.a
        tensors[f"base_model.model.{prefix}.{path}.lora_B.weight"] = update.b
    save_tensors(tensors, folder / "adapter_model.safetensors")
    every = {f"{parent}.{name}" for parent, module, _ in placed(model) for name in module.targets}
    settings = lora_config(found, every) | {
        "base_model_name_or_path": about["base"]["location"],
        "revision": model.config.revision,
        "lora_dropout": model.config.adapter.dropout,
    }
    write_json(folder / "adapter_config.json", settings)


def lora_config(found: Mapping[str, Update], every: set[str]) -> dict[str, Any]:
    r"""PEFT's `LoraConfig` for these updates; `every` are the projections that have an adapter for any task.

    PEFT scales by alpha / rank, so alpha grows with the rank. It takes a projection's rank and alpha from the first
    pattern for which the regular expression `(.*\.)?(PATTERN)$` matches its name (0.21, `get_pattern_key`): a bare
    `q_proj` would mean that of all layers.
    """
    kinds = {path: (update.rank, _whole(update.scale * update.rank)) for path, update in found.items()}
    [((rank, alpha), _)] = Counter(kinds.values()).most_common(1)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        # Of both tasks: the weights are named as those of a model with its LM head.
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(path): own for path, (own, _) in kinds.items() if own != rank},
        "alpha_pattern": {re.escape(path): own for path, (_, own) in kinds.items() if own != alpha},
        "target_modules": sorted({path.rpartition(".")[2] for path in found}),
    }
    if every > found.keys():
        # Some layers have no expert for the task, and names of projections alone would give them one.
        places = [path.split(".") for path in found]
        settings["layers_pattern"] = places[0][0]
        settings["layers_to_transform"] = sorted({int(index) for _, index, *_ in places})
    return settings


def _whole(number: float) -> int | float:
    """Whole numbers as integers, as other readers of the file expect them."""
    return int(number) if number.is_integer() else number


def _write_merged(model: UnifiedModel, task: Task, found: Mapping[str, Update], folder: Path) -> None:
    plain, tokenizer = load_backbone(model.config, model.device)
    merge(plain, found)
    way = model.config.embedding if task is Task.EMBEDDING else model.config.reranking
    if way.attention == "bidirectional":
        plain.config.is_causal = False
    if task is Task.EMBEDDING:
        _write_sentence_transformer(model, plain.config.get_text_config().hidden_size, tokenizer, folder)
    try:
        with quiet():
            plain.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"{folder.parent}: cannot be written: {error}; free space or choose another folder") from error
    if task is Task.EMBEDDING:
        _check_tokenizer(model, folder)


def _write_sentence_transformer(model: UnifiedModel, width: int, tokenizer: Any, folder: Path) -> None:
    """Its small files, in the spelling that versions 5 and 6 both read; and a tokenizer that needs no help.

    sentence-transformers puts text before a text, never behind it, and knows nothing of `append_eos`: the tokenizer
    itself has to add the tokens at both ends. Version 6 turns every text into a chat message if there is a template.
    """
    prompts, prompter, prefixes = model.config.prompts, model.prompter, {}
    for kind, template in (("query", prompts.query), ("document", prompts.document)):
        if not template.endswith(f"{{{kind}}}"):
            raise UserError(
                f"model.prompts.{kind}: ends in text after {{{kind}}}, which sentence-transformers cannot add; "
                "use --format peft"
            )
        prefixes[kind] = template.removesuffix(f"{{{kind}}}").replace("{instruction}", prompts.instruction)
    tokenizer.chat_template = None
    tokenizer.add_bos_token = bool(prompter._prefix)
    if prompter._suffix:
        [tokenizer.eos_token] = tokenizer.convert_ids_to_tokens(prompter._suffix)
    tokenizer.add_eos_token = bool(prompter._suffix)
    longest = max(
        len(prompter.queries([""])[0]) + prompts.max_query_tokens,
        len(prompter.documents([""])[0]) + prompts.max_document_tokens,
    )
    (folder / "1_Pooling").mkdir()
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules.items())
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": model.config.embedding.pooling == "mean",
            "pooling_mode_lasttoken": model.config.embedding.pooling == "last",
            "include_prompt": True,
        },
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": prefixes,
            "default_prompt_name": "document" if prefixes["document"] else None,
            "similarity_fn_name": "cosine",
        },
    )


def _check_tokenizer(model: UnifiedModel, folder: Path) -> None:
    """Raises: UserError when the tokenizer as saved does not give the model's own tokens."""
    texts = [GOLDEN_DOCUMENT, "", " two  spaces\n"]
    own = model.tokenizer(texts, add_special_tokens=False).input_ids
    wanted = [model.prompter._prefix + ids + model.prompter._suffix for ids in own]
    if AutoTokenizer.from_pretrained(folder)(texts).input_ids != wanted:
        raise UserError(
            f"{model.config.base}: its tokenizer does not keep the tokens that begin and end a text "
            "(model.prompts.append_eos) when it is saved; use --format peft"
        )
