"""Trained weights on disk: safetensors beside a JSON file that says what they are and what they must give.

The JSON file holds the whole model configuration, prompts included, and golden outputs for two fixed texts. Loading
recomputes them, so a drift of base, tokenizer, template or precision is an error and not a quietly worse ranking.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unimoer import __version__
from unimoer.config import parse_model
from unimoer.data.collate import pad
from unimoer.errors import UserError
from unimoer.files import new_folder, read_json, write_json
from unimoer.model.experts import active_ranks, grow_expert
from unimoer.model.scoring import score_candidates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

FORMAT = 1
GOLDEN_QUERY = "how are planets formed"
GOLDEN_DOCUMENT = "Planets grow from the disc of gas and dust around a young star."
GOLDEN_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest allowed difference, relative to the size of the output; bfloat16 differs between kinds of hardware."""
SERVED = 4
"""Times as much is allowed of weights that were merged in their own precision; a wrong product shows all the same."""
BASE_INSIDE = {"folder": "base", "file": "base.gguf"}
"""What the frozen base is called in a checkpoint that brings it along."""


def golden_outputs(model: UnifiedModel, query: str = GOLDEN_QUERY, document: str = GOLDEN_DOCUMENT) -> dict[str, Any]:
    """The golden texts with the first 8 numbers of each one's vector, and their score as a pair."""
    prompter, side = model.prompter, model.config.padding
    pad_id = model.tokenizer.pad_token_id
    ids = (prompter.queries([query]), prompter.documents([document]))
    batches = (pad(one, pad_id=pad_id, padding=side, multiple=16).to(str(model.device)) for one in ids)
    with torch.inference_mode():
        asked, found = (model.embed(batch)[0, :8].tolist() for batch in batches)
        [[score]] = score_candidates(model, [query], [[document]])
    dtype = next(p.dtype for p in model.decoder.parameters() if not p.requires_grad)
    return {
        "query": query,
        "document": document,
        "embedding": asked,
        "document_embedding": found,
        "score": float(score),
        "dtype": str(dtype).removeprefix("torch."),
    }


def fingerprint(model: UnifiedModel) -> str:
    """Identity of the frozen base: 16 hex digits over samples of every frozen tensor, in any precision."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.decoder.named_parameters()):
        if f"decoder.{name}" not in model.base_names:
            continue
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // 512)].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path.parent}: cannot be written: {error}; free space or choose another folder") from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises: UserError when the file is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged safetensors file: {error}") from error


def save_model(model: UnifiedModel, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write `adapter.safetensors` and `unimoer.json`; the folder appears complete or not at all.

    With `dtype` bfloat16 weights take half the place, and the model itself is rounded to them.
    """
    rounded = {name for name, tensor in model.state().items() if tensor.dtype == torch.float32 != dtype}
    with torch.no_grad():
        for name in rounded:
            tensor = model.state()[name]
            tensor.copy_(tensor.to(dtype))
    was_training = model.training
    model.eval()
    golden = golden_outputs(model)
    if not all(
        math.isfinite(value) for value in (*golden["embedding"], *golden["document_embedding"], golden["score"])
    ):
        raise UserError(f"{folder}: the trained model returns no numbers: training diverged; lower the learning rate")
    with new_folder(folder) as temporary:
        kept = {name: tensor.to(dtype) if name in rounded else tensor for name, tensor in model.state().items()}
        save_tensors(kept, temporary / "adapter.safetensors")
        description = {
            "format": FORMAT,
            "unimoer": __version__,
            "model": model.config.model_dump(mode="json"),
            "base_fingerprint": fingerprint(model),
            "pad_token": model.tokenizer.pad_token,
            "eos_token": model.tokenizer.eos_token,
            "golden": golden,
        }
        moved = model.router_moved()
        if moved is not None:
            description["router_moved"] = moved
        if active := active_ranks(model):
            description["active_ranks"] = active
        write_json(temporary / "unimoer.json", description)
    model.train(was_training)


def load_weights(model: UnifiedModel, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Copy tensors into everything but the base; every name and shape must match, none may be left over.

    Raises:
        UserError: a key is missing, unexpected, or of another shape.
    """
    if model.pilots is not None:
        model.pilots.make_room(tensors)
    wanted = model.state()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which the model has not"
        raise UserError(f"{where}: {what} ({len(missing)} missing, {len(unexpected)} unexpected)")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != tensors[name].shape:
                raise UserError(
                    f"{where}: {name} is {tuple(tensors[name].shape)}, the model needs {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def load_model(folder: Path, device: torch.device, *, verify: bool = True) -> UnifiedModel:
    """Rebuild the model from its own description and check that it gives what it gave when it was saved.

    Raises:
        UserError: the checkpoint is of another base or format, incomplete, or its golden outputs differ.
    """
    description = read_description(folder)
    model = UnifiedModel(description["model"], device)
    found = fingerprint(model)
    if found != description["base_fingerprint"]:
        expected = description["base_fingerprint"]
        raise UserError(f"{folder}: made on another base model: {expected}, but {model.config.base} is {found}")
    load_weights(model, load_tensors(folder / "adapter.safetensors"), folder / "adapter.safetensors")
    # The file says how far they moved; from here they would seem to come from another seed.
    model.router_start.clear()
    for expert, ranks in description["active_ranks"].items():
        grow_expert(model, expert, ranks)
    if verify:
        verify_golden(model, description["golden"], folder)
    return model


def read_description(folder: Path) -> dict[str, Any]:
    """`unimoer.json` of a checkpoint, with `model` as a checked `ModelConfig` and all fields present.

    `tasks` is what it was trained for, where the file says it. A base that the checkpoint brings along is named by its
    path.

    Raises:
        UserError: it is missing, broken, of another format, or lacks a field.
    """
    path = folder / "unimoer.json"
    description = read_json(path)
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: checkpoint format {found}, this version reads {FORMAT}")
    for field in ("model", "base_fingerprint", "golden"):
        if field not in description:
            raise UserError(f"{path}: lacks '{field}'")
    active = description.get("active_ranks", {})
    if not isinstance(active, dict) or not all(isinstance(ranks, int) for ranks in active.values()):
        raise UserError(f"{path}: 'active_ranks' is not a number of ranks for each expert")
    model = parse_model(description["model"], str(path))
    inside, tasks = description.get("base_inside"), description.get("tasks")
    if inside is not None:
        if inside not in BASE_INSIDE.values():
            raise UserError(f"{path}: 'base_inside' is '{inside}'; it can be {' or '.join(BASE_INSIDE.values())}")
        model = model.model_copy(update={"base": str(folder / inside)})
    if tasks is not None and (not tasks or not set(tasks) <= set(Task)):
        raise UserError(f"{path}: 'tasks' is {tasks}; it lists {' and '.join(Task)}, or one of them")
    return {
        **description,
        "active_ranks": active,
        "model": model,
        "tasks": None if tasks is None else tuple(map(Task, tasks)),
    }


def verify_golden(model: UnifiedModel, golden: dict[str, Any], folder: Path, *, served: bool = False) -> None:
    """Compare outputs with those of `golden_outputs` when the model was saved in `folder`.

    `served`: after `for_inference`, which rounds weights once more.

    Raises:
        UserError: they differ.
    """
    now = golden_outputs(model, golden.get("query", GOLDEN_QUERY), golden.get("document", GOLDEN_DOCUMENT))
    # The coarser of the two precisions decides what can be asked for.
    tolerance = max(GOLDEN_TOLERANCE[name] for name in (golden.get("dtype", now["dtype"]), now["dtype"]))
    # Those of earlier versions have no document's.
    names = [name for name in ("embedding", "document_embedding") if name in golden]
    expected, actual = (torch.tensor([numbers for name in names for numbers in one[name]]) for one in (golden, now))
    drift = float((expected - actual).norm() / expected.norm())
    score_drift = abs(golden["score"] - now["score"]) / max(1.0, abs(golden["score"]))
    if not max(drift, score_drift) <= tolerance * (SERVED if served else 1):
        why = "this machine serves it wrongly" if served else "tokenizer, base or precision has changed"
        raise UserError(
            f"{folder}: golden outputs differ from those saved (embedding by {drift:.1%}, score by {score_drift:.1%}): "
            f"{why}"
        )
