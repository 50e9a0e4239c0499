"""What a stored vector is of: which model, and which text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from unimoer.files import read_json
from unimoer.library.model import UniMoER
from unimoer.types import Task

PROMPTS = ("query", "document", "instruction", "append_eos", "eos_token", "max_query_tokens", "max_document_tokens")
"""Settings of prompts that decide about a vector."""


def name_of(model: str | Path) -> str:
    """As another process finds it: a released model by its name, a folder by its whole path."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)


def identity(model: UniMoER, task: Task = Task.EMBEDDING) -> str:
    """Sixteen hex digits over all that decides about a vector: base, adapter, routers, prompts, limits.

    For reranking, over all that decides about a score: the head, and every prompt.
    """
    about = read_json(model.checkpoint / "unimoer.json")
    config = model.model.config
    parts, kept, extra = [config.adapter, config.embedding], set(PROMPTS), []
    if task is Task.RERANKING:
        parts, kept, extra = [*parts, config.reranking], set(type(config.prompts).model_fields), [task.value]
    prompts = config.prompts.model_dump(include=kept, exclude_defaults=True)
    # Only what differs from its default: a setting of a later version changes nothing here.
    settings = [part.model_dump(mode="json", exclude_defaults=True) for part in parts]
    if config.adapter.router is not None:
        # A router's type is the default of its kind.
        settings[0]["router"]["type"] = config.adapter.router.type
    content = json.dumps([about["base_fingerprint"], settings, prompts, *extra], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    digest.update((model.checkpoint / "adapter.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def text_hash(text: str) -> str:
    """Of a document's content: what is there already need not be embedded again."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
