"""Which model the vectors of an index are of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from unimoer.files import read_json
from unimoer.library import UniMoER

PROMPTS = ("query", "document", "instruction", "append_eos", "eos_token", "max_query_tokens", "max_document_tokens")
"""Settings of prompts that decide about a vector."""


def name_of(model: str | Path) -> str:
    """As another process finds it: a released model by its name, a folder by its whole path."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)


def identity(model: UniMoER) -> str:
    """Sixteen hex digits over all that decides about a vector: base, adapter, routers, prompts, limits."""
    about = read_json(model.checkpoint / "unimoer.json")
    config = model.model.config
    prompts = config.prompts.model_dump(include=set(PROMPTS), exclude_defaults=True)
    # Only what differs from its default: a setting of a later version changes nothing here.
    settings = [part.model_dump(mode="json", exclude_defaults=True) for part in (config.adapter, config.embedding)]
    content = json.dumps([about["base_fingerprint"], settings, prompts], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    digest.update((model.checkpoint / "adapter.safetensors").read_bytes())
    return digest.hexdigest()[:16]
