"""The small JSON files by which sentence-transformers opens a portable folder; it need not be installed to write them.

    my-model/                                 SentenceTransformer("my-model", trust_remote_code=True)
    my-model/cross-encoder/                   CrossEncoder("my-model/cross-encoder", trust_remote_code=True)

A folder can name one kind of model, so the second kind has a folder of its own, without weights. Both name classes of
`unimoer.integrations.sentence_transformers`, which read the one checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from unimoer.config import PromptConfig
from unimoer.files import write_json

MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
CROSS_ENCODER = "cross-encoder"
"""The folder in the folder."""
CLASSES = "unimoer.integrations.sentence_transformers"
IDENTITY = "torch.nn.modules.linear.Identity"
"""Without it, sentence-transformers puts scores through a sigmoid."""


def write_sentence_files(folder: Path, prompts: PromptConfig) -> None:
    """Both kinds for every checkpoint: the class that was not trained for says so when it is loaded."""
    _write(
        folder,
        "UniMoEREmbedder",
        {
            "model_type": "SentenceTransformer",
            "prompts": sentence_prompts(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _write(
        folder / CROSS_ENCODER,
        "UniMoERScorer",
        {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None, "activation_fn": IDENTITY},
    )


def sentence_prompts(prompts: PromptConfig) -> dict[str, str]:
    """Whole templates: `encode(texts, prompt_name="query")` means a query by one. Nothing is put before a text."""
    return {"query": prompts.query, "document": prompts.document}


def _write(folder: Path, name: str, config: dict[str, object]) -> None:
    write_json(folder / MODULES, [{"idx": 0, "name": "0", "path": "", "type": f"{CLASSES}.{name}"}])
    write_json(folder / CONFIG, config)
