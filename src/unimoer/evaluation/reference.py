"""A reference for the embedding task: a public sentence encoder, used as it comes.

The one file of the package, beside the benchmarks, that imports sentence-transformers (extra `bench`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unimoer.assets import cache_dir, staged
from unimoer.assets.opt_in import fetch_model
from unimoer.assets.table import OPT_IN
from unimoer.errors import UserError, did_you_mean
from unimoer.evaluation.search import top_k
from unimoer.types import RetrievalDataset, Run

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ENCODERS = tuple(name for name, item in OPT_IN.items() if item.folder is not None)
"""The opt-in encoders that `load_encoder` knows by name."""


@dataclass(frozen=True, slots=True)
class ReferenceEncoder:
    """`fingerprint`: SHA-256 of the encoder's files, which names the vectors that are kept of it."""

    model: SentenceTransformer
    fingerprint: str


def load_encoder(name: str, device: torch.device) -> ReferenceEncoder:
    """One of `ENCODERS`, fetched at its first use, or a folder that sentence-transformers wrote.

    In float32 on every device. Texts are cut at the encoder's own length: 256 tokens for all-minilm-l6-v2, 384 for
    all-mpnet-base-v2.

    Raises:
        UserError: sentence-transformers is not installed, or there is no such encoder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"the reference encoder {name} needs sentence-transformers: pip install 'unimoer[bench]'"
        ) from error
    if name in ENCODERS:
        folder = fetch_model(OPT_IN[name])
    else:
        folder = Path(name)
        if not (folder / "modules.json").is_file():
            raise UserError(f"no reference encoder '{name}'{did_you_mean(name, ENCODERS)}, and no folder with one")
    model = SentenceTransformer(
        str(folder),
        device=str(device),
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"dtype": torch.float32, "use_safetensors": True},
    )
    return ReferenceEncoder(model, _content_hash(folder))


def rank(
    encoder: ReferenceEncoder, dataset: RetrievalDataset, queries: Mapping[str, str], *, k: int = 100, batch: int = 32
) -> Run:
    """The `k` documents with the largest cosine to each query, exactly, as `search.search` ranks them.

    The corpus is encoded once: its vectors are kept in the cache folder, under a hash of its texts and the encoder.
    """
    document_ids, query_ids = list(dataset.corpus), list(queries)
    texts = [dataset.corpus[key].content for key in document_ids]
    path = cache_dir() / "vectors" / f"{_key(encoder, texts)}.npy"
    if path.exists():
        documents = np.load(path, allow_pickle=False)
    else:
        documents = _encode(encoder, texts, batch)
        with staged(path) as temporary, temporary.open("wb") as file:
            np.save(file, documents)
    return top_k(_encode(encoder, list(queries.values()), batch), documents, query_ids, document_ids, k)


def _encode(encoder: ReferenceEncoder, texts: list[str], batch: int) -> np.ndarray:
    """`[texts, d]` float32, rows of length 1."""
    return encoder.model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)


def _key(encoder: ReferenceEncoder, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
