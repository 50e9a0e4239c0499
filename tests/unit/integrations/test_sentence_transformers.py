"""A saved folder in sentence-transformers' own two classes: the same numbers, and a word where it cannot work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

import tiny
from unimoer import UniMoER
from unimoer.assets.released import RELEASED
from unimoer.errors import UserError
from unimoer.files import read_json, write_json
from unimoer.integrations.sentence_transformers import cross_encoder, sentence_transformer
from unimoer.library.sentence_files import CONFIG, CROSS_ENCODER, MODULES, write_sentence_files
from unimoer.model.checkpoint import read_description, save_model

QUERY = "find my red kettle"
TEXTS = ["The red kettle stands in the corner.", "A bench.", "", "The red kettle stands in the corner.", "x " * 90]
PAIRS = [(QUERY, text) for text in TEXTS]
PROMPTS = tiny.PROMPTS | {
    "query": "Instruct: {instruction}\nQuery:{query}",
    "document": "Text: {document}",
    "pair": "{instruction}\n{query}\n{document}",
}
ROUTED = {"rank": 4, "alpha": 8.0, "experts": {"one": 2, "two": 2}, "router": {"type": "softmax"}}
LISTS = {"pooling": "mean", "head": "cosine"}


def saved(base: Path, folder: Path, **changes: Any) -> Path:
    save_model(tiny.build(base, noise=0.3, **{"prompts": PROMPTS} | changes), folder / "checkpoint")
    return UniMoER.load(folder / "checkpoint", device="cpu").save(folder / "saved")


@pytest.fixture(scope="module", params=["one LoRA", "routed"])
def folder(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"adapter": ROUTED} if request.param == "routed" else {}
    return saved(base, tmp_path_factory.mktemp("sentence"), **changes)


@pytest.fixture(scope="module")
def model(folder: Path) -> UniMoER:
    return UniMoER.load(folder, device="cpu")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


@pytest.fixture(scope="module")
def scorer(folder: Path) -> CrossEncoder:
    return CrossEncoder(str(folder / CROSS_ENCODER), device="cpu", trust_remote_code=True)


def test_vectors_are_those_of_the_model(embedder: SentenceTransformer, model: UniMoER) -> None:
    queries, documents = model.encode(TEXTS, "query"), model.encode(TEXTS, "document")
    for found, expected in (
        (embedder.encode_query(TEXTS), queries),
        (embedder.encode(TEXTS, prompt_name="query", batch_size=2), queries),
        (embedder.encode_document(TEXTS), documents),
        (embedder.encode(TEXTS), documents),
        (embedder.encode_query(TEXTS, instruction="?"), model.encode(TEXTS, "query", instruction="?")),
        (embedder.encode(TEXTS[0])[None], documents[:1]),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # The two kinds and the two instructions are told apart.
    assert np.abs(queries - documents).max() > 0.1
    assert np.abs(queries - model.encode(TEXTS, "query", instruction="?")).max() > 0.1
    assert embedder.similarity_fn_name == "cosine"
    np.testing.assert_allclose(embedder.similarity(queries, documents).numpy(), queries @ documents.T, atol=1e-5)
    assert embedder.get_embedding_dimension() == model.dimension
    assert embedder.max_seq_length == 32


def test_scores_are_those_of_the_head_in_the_order_given(scorer: CrossEncoder, model: UniMoER) -> None:
    expected = model.score(PAIRS)
    np.testing.assert_allclose(scorer.predict(PAIRS, batch_size=2), expected, atol=1e-5)
    # Its own default would be a sigmoid.
    assert isinstance(scorer.activation_fn, torch.nn.Identity)
    np.testing.assert_allclose(scorer.predict(list(map(list, PAIRS))), expected, atol=1e-5)
    np.testing.assert_allclose(scorer.predict(PAIRS[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(scorer.predict(PAIRS, instruction="?"), model.score(PAIRS, instruction="?"), atol=1e-5)
    # It reads blank texts like others.
    filled = [text for text in TEXTS if text]
    ranked, own = scorer.rank(QUERY, filled, top_k=3), model.rerank(QUERY, filled, 3)
    assert [one["corpus_id"] for one in ranked] == [one.index for one in own]
    np.testing.assert_allclose([one["score"] for one in ranked], [one.score for one in own], atol=1e-5)


def test_vectors_can_be_cut(folder: Path, embedder: SentenceTransformer, model: UniMoER) -> None:
    expected = model.encode(TEXTS, "document", dim=8)
    found = embedder.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    short = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, truncate_dim=8)
    assert short.get_embedding_dimension() == 8
    # Cut only; its cosine is that of the vectors of unit length.
    assert not np.allclose(short.encode(TEXTS), expected, atol=1e-3)
    own = short.similarity(short.encode(TEXTS), short.encode(TEXTS)).numpy()
    np.testing.assert_allclose(own, expected @ expected.T, atol=1e-5)


def test_one_model_in_memory_does_both(model: UniMoER) -> None:
    embedder, scorer = sentence_transformer(model), cross_encoder(model)
    assert embedder[0].unimoer is scorer[0].unimoer is model
    np.testing.assert_allclose(embedder.encode_query(TEXTS), model.encode(TEXTS, "query"), atol=1e-5)
    np.testing.assert_allclose(
        embedder.encode(TEXTS, prompt_name="document"), model.encode(TEXTS, "document"), atol=1e-5
    )
    np.testing.assert_allclose(scorer.predict(PAIRS), model.score(PAIRS), atol=1e-5)
    # Where it is already, it is not loaded again; for another device it is.
    assert embedder.to("cpu")[0].unimoer is model
    with pytest.raises(UserError, match="--device meta: unknown"):
        scorer.to("meta")
    assert not list(embedder.parameters())


def test_what_sentence_transformers_saves_loads_again(
    embedder: SentenceTransformer, scorer: CrossEncoder, model: UniMoER, tmp_path: Path
) -> None:
    for part, name in ((embedder, "vectors"), (scorer, "scores")):
        part.save_pretrained(str(tmp_path / name))
    # Over what is there, too.
    scorer.save_pretrained(str(tmp_path / "scores"))
    again = SentenceTransformer(str(tmp_path / "vectors"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(TEXTS, prompt_name="query"), model.encode(TEXTS, "query"), atol=1e-5)
    # Here its scorer is the whole folder.
    scores = CrossEncoder(str(tmp_path / "scores"), device="cpu", trust_remote_code=True).predict(PAIRS)
    np.testing.assert_allclose(scores, model.score(PAIRS), atol=1e-5)
    np.testing.assert_allclose(UniMoER.load(tmp_path / "scores", device="cpu").score(PAIRS), scores, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, s: e.encode(["a"], prompt="query: "), "prompt 'query: ', task None: texts get the checkpoint's own"),
        (lambda e, s: e.encode(["a"], task="retrieval"), "prompt None, task 'retrieval': texts get the checkpoint's"),
        (lambda e, s: e.encode(["a", None]), "inputs: NoneType, not a text"),
        (lambda e, s: e.encode([{"text": "a"}]), "inputs: dict, not a text"),
        (lambda e, s: s.predict([("a", "b")], prompt="x"), "prompt 'x': pairs get the checkpoint's own prompt"),
        (lambda e, s: s.predict([("a", "b", "c")]), "inputs: not pairs of query and document"),
        (lambda e, s: s.predict([("a", 3)]), "inputs: int, not a text"),
    ],
)
def test_what_would_be_misread_is_refused(
    embedder: SentenceTransformer,
    scorer: CrossEncoder,
    call: Callable[[SentenceTransformer, CrossEncoder], object],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        call(embedder, scorer)


def test_what_would_have_no_effect_is_refused(folder: Path, embedder: SentenceTransformer) -> None:
    with pytest.raises(UserError, match="model_kwargs is for models of transformers; a UniMoER has none inside"):
        SentenceTransformer(str(folder), trust_remote_code=True, model_kwargs={"dtype": "float16"})
    with pytest.raises(UserError, match="processor_kwargs is for models of transformers"):
        CrossEncoder(str(folder / CROSS_ENCODER), trust_remote_code=True, max_length=8)
    with pytest.raises(UserError, match="backend 'onnx' is for models of transformers"):
        SentenceTransformer(str(folder), trust_remote_code=True, backend="onnx")
    with pytest.raises(AttributeError, match="max_seq_length"):
        embedder.max_seq_length = 8


def test_the_task_that_was_not_trained_is_refused(base: Path, tmp_path: Path) -> None:
    folder = saved(base, tmp_path)
    for task, other in (("embedding", "reranking"), ("reranking", "embedding")):
        write_json(folder / "unimoer.json", read_json(folder / "unimoer.json") | {"tasks": [task]})
        load, path = (CrossEncoder, folder / CROSS_ENCODER) if other == "reranking" else (SentenceTransformer, folder)
        with pytest.raises(UserError, match=f"was trained for {task}, not for {other}"):
            load(str(path), device="cpu", trust_remote_code=True)


def test_a_head_that_reads_lists_is_refused(base: Path, tmp_path: Path) -> None:
    folder = saved(base, tmp_path, reranking=LISTS)
    with pytest.raises(UserError, match="head 'cosine' reads a query with all its candidates; use rerank"):
        CrossEncoder(str(folder / CROSS_ENCODER), device="cpu", trust_remote_code=True)
    assert SentenceTransformer(str(folder), device="cpu", trust_remote_code=True).encode(TEXTS).shape == (5, 32)


def test_nothing_in_the_folder_is_executed(base: Path, tmp_path: Path) -> None:
    """The flag is needed, and imports the installed package, whatever lies in the folder."""
    folder = saved(base, tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(folder), device="cpu")
    for name in ("unimoer.py", "sentence_transformers.py", "unimoer/integrations/sentence_transformers.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit('executed')")
    found = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    assert type(found[0]).__module__ == "unimoer.integrations.sentence_transformers"


def test_saving_needs_no_sentence_transformers_and_without_it_the_extra_is_named(base: Path, tmp_path: Path) -> None:
    save_model(tiny.build(base), tmp_path / "checkpoint")
    code = f"""
import sys
sys.modules["sentence_transformers"] = None
from unimoer import UniMoER
UniMoER.load({str(tmp_path / "checkpoint")!r}, device="cpu").save({str(tmp_path / "again")!r})
import unimoer.integrations.sentence_transformers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (tmp_path / "again" / MODULES).exists()
    assert "is not installed; pip install 'unimoer[sentence-transformers]'" in done.stderr


def test_the_released_models_have_the_files(tmp_path: Path) -> None:
    for name, folder in RELEASED.items():
        write_sentence_files(tmp_path / name, read_description(folder)["model"].prompts)
        for file in (MODULES, CONFIG, f"{CROSS_ENCODER}/{MODULES}", f"{CROSS_ENCODER}/{CONFIG}"):
            assert (folder / file).read_bytes() == (tmp_path / name / file).read_bytes()


@pytest.mark.assets
def test_the_released_model_loads_by_its_path() -> None:
    folder = RELEASED["smollm2-135m-search"]
    model = UniMoER.load(folder, device="cpu")
    embedder = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    # In bfloat16, where the machine has units for it.
    np.testing.assert_allclose(embedder.encode_query(TEXTS), model.encode(TEXTS, "query"), atol=2e-2)
    np.testing.assert_allclose(cross_encoder(model).predict(PAIRS), model.score(PAIRS), atol=5e-2)
