"""A checkpoint as one folder that works elsewhere: its weights, the base where nobody else has it, a model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from unimoer.errors import UserError
from unimoer.files import new_folder, read_json, write_json, write_text
from unimoer.library.card import card
from unimoer.library.sentence_files import write_sentence_files
from unimoer.model.checkpoint import BASE_INSIDE, read_description, save_model
from unimoer.model.stages import join_stages
from unimoer.types import Task

_BASE_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""Of a transformers folder: configuration, weights and tokenizer; neither pickled weights nor code."""


def save_portable(
    checkpoint: Path,
    folder: Path,
    tasks: Sequence[Task],
    base: Literal["auto", "copy", "reference"],
    onto: Path | None = None,
) -> Path:
    """Copy a checkpoint to a new folder, all or nothing; see `UniMoER.save`."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another folder, or remove it")
    with new_folder(folder) as temporary:
        if onto is None:
            own = checkpoint
            shutil.copyfile(checkpoint / "adapter.safetensors", temporary / "adapter.safetensors")
        else:
            own = temporary / "joined"
            save_model(join_stages(onto, checkpoint, torch.device("cpu")), own, dtype=torch.bfloat16)
            (own / "adapter.safetensors").rename(temporary / "adapter.safetensors")
        content = read_json(own / "unimoer.json")
        config = read_description(own)["model"]
        if own is not checkpoint:
            shutil.rmtree(own)
        source = Path(config.base).expanduser()
        if base == "copy" and not source.exists():
            raise UserError(f"{config.base}: is not a folder or file here, so it cannot be copied; save by reference")
        if base != "reference" and source.exists():
            content["base_inside"] = _copy_base(source, temporary)
        else:
            content.pop("base_inside", None)
        content["tasks"] = [task.value for task in tasks]
        write_json(temporary / "unimoer.json", content)
        write_sentence_files(temporary, config.prompts)
        write_text(temporary / "README.md", card(checkpoint, config, content, tasks))
    return folder


def _copy_base(source: Path, folder: Path) -> str:
    """Returns its name in the folder."""
    if source.is_file():
        shutil.copyfile(source, folder / BASE_INSIDE["file"])
        return BASE_INSIDE["file"]
    inside = folder / BASE_INSIDE["folder"]
    inside.mkdir()
    for path in sorted({path for pattern in _BASE_FILES for path in source.glob(pattern)}):
        shutil.copyfile(path, inside / path.name)
    return BASE_INSIDE["folder"]
