"""A reference for the embedding task: a public sentence encoder, used as it comes.

The one file of the package, beside the benchmarks, that imports sentence-transformers (extra `bench`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unimoer.assets.opt_in import fetch_model
from unimoer.assets.table import OPT_IN
from unimoer.errors import UserError, did_you_mean
from unimoer.evaluation.search import top_k
from unimoer.types import RetrievalDataset, Run

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ENCODERS = tuple(name for name, item in OPT_IN.items() if item.folder is not None)
"""The opt-in encoders that `load_encoder` knows by name."""


def load_encoder(name: str, device: torch.device) -> SentenceTransformer:
    """One of `ENCODERS`, fetched at its first use, or a folder that sentence-transformers wrote.

    Texts are cut at the encoder's own length, 256 tokens for all-minilm-l6-v2 and 384 for all-mpnet-base-v2.

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
    return SentenceTransformer(str(folder), device=str(device), local_files_only=True, trust_remote_code=False)


def rank(
    encoder: SentenceTransformer,
    dataset: RetrievalDataset,
    queries: Mapping[str, str],
    *,
    k: int = 100,
    batch_size: int = 32,
) -> Run:
    """The `k` documents of the corpus with the largest cosine to each query, exactly, as `search.search` ranks them."""
    document_ids, query_ids = list(dataset.corpus), list(queries)
    documents = _encode(encoder, [dataset.corpus[key].content for key in document_ids], batch_size)
    vectors = _encode(encoder, list(queries.values()), batch_size)
    return top_k(vectors, documents, query_ids, document_ids, k)


def _encode(encoder: SentenceTransformer, texts: list[str], batch_size: int) -> np.ndarray:
    """`[texts, d]` float32, rows of length 1."""
    return encoder.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
