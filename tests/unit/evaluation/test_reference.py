"""A public encoder as a reference, with a tiny encoder in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel, AutoTokenizer

import tiny
from unimoer.assets.opt_in import is_present
from unimoer.assets.table import OPT_IN
from unimoer.errors import UserError
from unimoer.evaluation import reference
from unimoer.evaluation.reference import ReferenceEncoder, load_encoder, rank
from unimoer.types import Document, RetrievalDataset

CORPUS = {
    "a": Document("the red kettle"),
    "b": Document("a pond", "garden"),
    "c": Document("the old fence"),
    "d": Document("kettle"),
}


@pytest.fixture
def encoder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceEncoder:
    """Mean pooling over the tiny base, saved as sentence-transformers saves and loaded from there."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path / "cache"))
    transformer = Transformer(str(base))
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(tmp_path / "encoder"))
    return load_encoder(str(tmp_path / "encoder"), tiny.CPU)


def vector(base: Path, text: str) -> np.ndarray:
    """The mean of the last states, without sentence-transformers."""
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")
    states = AutoModel.from_pretrained(base)(**ids).last_hidden_state[0].detach().numpy().mean(0)
    return states / np.linalg.norm(states)


def test_rank_is_the_cosine_of_title_and_text(encoder: ReferenceEncoder, base: Path) -> None:
    queries = {"q1": "the red kettle", "q2": "garden\na pond"}
    run = rank(encoder, RetrievalDataset("toy", CORPUS, queries, {}), queries, batch=3)
    for query, text in queries.items():
        expected = {key: float(vector(base, text) @ vector(base, item.content)) for key, item in CORPUS.items()}
        assert run[query] == pytest.approx(expected, abs=1e-5)
    assert (max(run["q1"], key=run["q1"].__getitem__), max(run["q2"], key=run["q2"].__getitem__)) == ("a", "b")
    assert set(rank(encoder, RetrievalDataset("toy", CORPUS, queries, {}), queries, k=1)["q1"]) == {"a"}


def test_a_corpus_is_encoded_once_and_again_when_it_changed(
    encoder: ReferenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    whole = reference._encode

    def counted(encoder: ReferenceEncoder, texts: list[str], batch: int) -> np.ndarray:
        encoded.append(len(texts))
        return whole(encoder, texts, batch)

    monkeypatch.setattr(reference, "_encode", counted)
    queries = {"q": "kettle"}
    first = rank(encoder, RetrievalDataset("toy", CORPUS, queries, {}), queries)
    assert rank(encoder, RetrievalDataset("toy", CORPUS, queries, {}), queries) == first
    assert sorted(encoded) == [1, 1, 4]
    changed = CORPUS | {"d": Document("kettles")}
    assert rank(encoder, RetrievalDataset("toy", changed, queries, {}), queries)["q"]["d"] != first["q"]["d"]


def test_an_encoder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reference encoder 'all-minilm'; did you mean 'all-minilm-l6-v2'"):
        load_encoder("all-minilm", tiny.CPU)
    with pytest.raises(UserError, match="and no folder with one"):
        load_encoder(str(tmp_path), tiny.CPU)


def test_without_sentence_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'unimoer\[bench\]'"):
        load_encoder("all-minilm-l6-v2", tiny.CPU)


@pytest.mark.assets
def test_minilm_finds_a_paraphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opt-in: runs where someone has fetched the encoder, and is skipped elsewhere."""
    if not is_present(OPT_IN["all-minilm-l6-v2"]):
        pytest.skip("all-minilm-l6-v2 is not in the cache: unimoer data fetch all-minilm-l6-v2")
    encoder = load_encoder("all-minilm-l6-v2", tiny.CPU)
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path))
    corpus = {"car": Document("an automobile broke down"), "sea": Document("waves at the beach")}
    run = rank(encoder, RetrievalDataset("toy", corpus, {}, {}), {"q": "my car stopped working"})
    assert run["q"]["car"] > run["q"]["sea"] + 0.2
