"""The library: the same numbers as the path of a study, whatever lies beside a text, and one folder that travels."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import tiny
from unimoer import Ranked, UniMoER
from unimoer.errors import UserError
from unimoer.files import read_json, write_json
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.checkpoint import save_model
from unimoer.model.inference import encode
from unimoer.model.scoring import score_candidates
from unimoer.runs import execute
from unimoer.studies.planning import plan_study

Make = Callable[..., dict[str, Any]]
QUERY = "find my red kettle"
DOCUMENTS = ["The red kettle stands in the corner.", "A bench.", "", "The red kettle stands in the corner.", "x" * 900]


def test_numbers_are_those_of_the_model(model: UniMoER, base: Path) -> None:
    plain = tiny.build(base, noise=0.3)
    kinds: tuple[Literal["query", "document"], ...] = ("query", "document")
    for kind, tokenise in zip(kinds, (plain.prompter.queries, plain.prompter.documents), strict=True):
        vectors = model.encode(DOCUMENTS, kind)
        assert vectors.shape == (5, model.dimension) and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, encode(plain, tokenise(DOCUMENTS)), atol=1e-5)
        # An empty text has no token under these prompts: its vector is 0, and so is every cosine with it.
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1, 1], atol=1e-5)
    [expected] = score_candidates(plain, [QUERY], [DOCUMENTS])
    scores = model.score([(QUERY, text) for text in DOCUMENTS])
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert scores.dtype == np.float32


def test_reranking_is_the_order_of_the_scores(model: UniMoER) -> None:
    scores = model.score([(QUERY, text) for text in DOCUMENTS])
    found = model.rerank(QUERY, DOCUMENTS)
    *read, blank = found
    assert read == sorted(read, key=lambda one: (-one.score, one.index))
    assert [DOCUMENTS[one.index] for one in found] == [one.document for one in found]
    np.testing.assert_allclose([one.score for one in read], scores[[one.index for one in read]], atol=1e-5)
    # Equal texts keep their order.
    order = [one.index for one in found]
    assert order.index(0) == order.index(3) - 1
    assert blank == (2, read[-1].score, "") and np.isfinite(scores).all()
    assert model.rerank(QUERY, DOCUMENTS, 2) == found[:2] and isinstance(found[0], Ranked)
    assert model.rerank(QUERY, DOCUMENTS, 0) == model.rerank(QUERY, []) == []
    assert model.rerank(QUERY, DOCUMENTS, 50) == found


@pytest.mark.parametrize("head", ["yes_no", "listwise", "cosine"])
def test_blank_documents_are_not_read_and_come_last(base: Path, tmp_path: Path, head: str) -> None:
    prompts = {
        **tiny.PROMPTS,
        "candidates": "{query}{mark}\n{candidates}{query}{mark}",
        "candidate": "{document}{mark}\n",
    }
    pooling = "last" if head == "yes_no" else "mean"
    built = tiny.build(base, reranking={"head": head, "pooling": pooling}, prompts=prompts, noise=0.3)
    save_model(built, tmp_path / "saved")
    model = UniMoER.load(tmp_path / "saved", device="cpu")
    texts = ["", *DOCUMENTS[:2], " \n\t"]
    found = model.rerank(QUERY, texts)
    assert [one.index for one in found[2:]] == [0, 3] and {one.score for one in found[1:]} == {found[1].score}
    assert [one[1:] for one in found[:2]] == [one[1:] for one in model.rerank(QUERY, DOCUMENTS[:2])]
    assert model.rerank(QUERY, ["", " "]) == [(0, 0, ""), (1, 0, " ")]


def test_equal_texts_of_a_long_list_have_equal_scores_and_keep_their_order(model: UniMoER) -> None:
    """They would fall into other batches, beside other lengths."""
    texts = [f"{'The bench is very old. ' * (number % 6)}{number % 60}" for number in range(150)]
    found = model.rerank(QUERY, texts, batch_tokens=128)
    scores = {one.index: one.score for one in found}
    places = {one.index: place for place, one in enumerate(found)}
    for number in range(90):
        assert scores[number] == scores[number + 60] and places[number] < places[number + 60]
    pairs = [(QUERY, text) for text in texts]
    assert [scores[number] for number in range(150)] == model.score(pairs, batch_tokens=128).tolist()
    vectors = model.encode(texts, "document", batch_tokens=128)
    assert (vectors[:90] == vectors[60:]).all()


def test_single_pairs_go_through_the_model_together(model: UniMoER, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shared between other queries, and the order in which a query's pairs are given is no matter."""
    queries = [f"find my kettle number {number % 20}" for number in range(40)]
    pairs = [(query, f"bench {number}") for number, query in enumerate(queries)]
    alone = np.concatenate([model.score([pair]) for pair in pairs])
    passes: list[int] = []
    decode = model.model.decoder.forward
    monkeypatch.setattr(
        model.model.decoder,
        "forward",
        lambda batch, **rest: passes.append(len(batch.input_ids)) or decode(batch, **rest),
    )
    np.testing.assert_allclose(model.score(pairs), alone, atol=1e-4)
    # A beginning and its two documents.
    assert len(passes) <= 2 * 20
    passes.clear()
    np.testing.assert_allclose(model.score(pairs[:20]), alone[:20], atol=1e-4)
    assert len(passes) == 1


@pytest.mark.parametrize("around", [0, 2, 5, 63])
def test_a_text_does_not_depend_on_the_texts_beside_it(model: UniMoER, around: int) -> None:
    others = [f"{'The bench is very old. ' * (number % 7)}{number}" for number in range(around)]
    alone, pair = model.encode(DOCUMENTS[:1], "document")[0], model.score([(QUERY, DOCUMENTS[0])])[0]
    np.testing.assert_allclose(model.encode([*others, DOCUMENTS[0]], "document")[-1], alone, atol=1e-5)
    np.testing.assert_allclose(model.score([(text, text) for text in others] + [(QUERY, DOCUMENTS[0])])[-1], pair, 1e-4)


def test_a_cut_vector_has_unit_length(model: UniMoER) -> None:
    whole, cut = model.encode(DOCUMENTS, "document"), model.encode(DOCUMENTS, "document", dim=8)
    lengths = np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, whole[:, :8] / np.where(lengths > 0, lengths, 1.0), atol=1e-6)
    assert cut.dtype == np.float32
    assert model.encode([], "query", dim=8).shape == (0, 8)
    assert model.score([]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode("text", "query"), TypeError, "texts: one string, where a list of texts is expected"),
        (lambda m: m.encode(["a", None], "query"), TypeError, "texts[1]: NoneType, not a text"),
        (lambda m: m.encode(["a", "\ud800"], "query"), ValueError, "texts[1]: holds half of a surrogate pair"),
        (lambda m: m.encode(["a"], "querry"), ValueError, "as_: 'querry'; did you mean 'query'?"),
        (lambda m: m.encode(["a"], "query", dim=0), ValueError, "dim: 0 is not between 1 and 32"),
        (lambda m: m.encode(["a"], "query", dim=33), ValueError, "dim: 33 is not between 1 and 32"),
        (lambda m: m.score([("a", "b"), "ab"]), TypeError, "pairs[1]: not a pair of query and document"),
        (lambda m: m.rerank("a", "b"), TypeError, "documents: one string, where a list of texts is expected"),
        (lambda m: m.rerank("a", ["b"], -1), ValueError, "top_k: -1 is negative"),
    ],
)
def test_what_is_no_text_is_refused(
    model: UniMoER, call: Callable[[UniMoER], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(model)


def test_a_saved_folder_travels(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    """With its base: the first one may go, and so may the place where it was saved."""
    own = tmp_path / "own"
    shutil.copytree(base, own)
    (own / "pytorch_model.bin").write_bytes(b"pickled")
    description = read_json(checkpoint / "unimoer.json")
    description["model"]["base"] = str(own)
    first = tmp_path / "first"
    shutil.copytree(checkpoint, first)
    write_json(first / "unimoer.json", description)
    model = UniMoER.load(first, device="cpu")
    expected = model.encode(DOCUMENTS, "document"), model.rerank(QUERY, DOCUMENTS)
    assert model.save(tmp_path / "saved") == tmp_path / "saved"
    shutil.rmtree(own)
    (tmp_path / "saved").rename(tmp_path / "moved")
    assert not list((tmp_path / "moved").rglob("*.bin"))
    again = UniMoER.load(tmp_path / "moved", device="cpu")
    np.testing.assert_array_equal(again.encode(DOCUMENTS, "document"), expected[0])
    assert again.rerank(QUERY, DOCUMENTS) == expected[1]
    # And once more, from the folder that brings its base along.
    again.save(tmp_path / "third")
    shutil.rmtree(tmp_path / "moved")
    np.testing.assert_array_equal(
        UniMoER.load(tmp_path / "third", device="cpu").encode(DOCUMENTS, "document"), expected[0]
    )


def test_a_base_of_the_hub_is_named_not_copied(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    model = UniMoER.load(checkpoint, device="cpu")
    model.save(tmp_path / "named", base="reference")
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "config_sentence_transformers.json",
        "cross-encoder",
        "modules.json",
        "unimoer.json",
    ]
    assert read_json(tmp_path / "named" / "unimoer.json")["model"]["base"] == str(base)
    with pytest.raises(UserError, match="exists already; choose another folder"):
        model.save(tmp_path / "named")
    description = read_json(checkpoint / "unimoer.json")
    description["model"]["base"] = "Qwen/Qwen3-0.6B-Base"
    shutil.copytree(checkpoint, tmp_path / "hub")
    write_json(tmp_path / "hub" / "unimoer.json", description)
    model.checkpoint = tmp_path / "hub"
    with pytest.raises(UserError, match=r"Qwen3-0.6B-Base: is not a folder or file here, so it cannot be copied"):
        model.save(tmp_path / "copied", base="copy")
    assert not (tmp_path / "copied").exists()


def test_a_gguf_base_comes_along_as_it_is(bases: Callable[[str], Path], tmp_path: Path) -> None:
    gguf = tiny.write_gguf(bases("qwen2"), tmp_path / "tiny.gguf")
    save_model(tiny.build(gguf), tmp_path / "checkpoint")
    UniMoER.load(tmp_path / "checkpoint", device="cpu").save(tmp_path / "saved")
    gguf.unlink()
    assert (tmp_path / "saved" / "base.gguf").is_file()
    assert UniMoER.load(tmp_path / "saved", device="cpu").encode(["a"], "query").shape == (1, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_inside": "../secret"}, "'base_inside' is '../secret'; it can be base or base.gguf"),
        ({"tasks": ["ranking"]}, "'tasks' is ['ranking']; it lists embedding and reranking, or one of them"),
        ({"golden": {"embedding": [1.0] * 8, "score": 0.0}}, "golden outputs differ from those saved"),
    ],
)
def test_a_folder_that_was_changed_is_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "changed")
    description = read_json(checkpoint / "unimoer.json")
    write_json(tmp_path / "changed" / "unimoer.json", {**description, **changes})
    with pytest.raises(UserError, match=re.escape(message)):
        UniMoER.load(tmp_path / "changed", device="cpu")
    if "golden" in changes:
        UniMoER.load(tmp_path / "changed", device="cpu", verify=False)


def test_weights_that_come_out_wrong_when_they_are_served_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they would by a kernel that is broken on a machine."""
    merge = MoELoRALinear.merge

    def wrong(module: MoELoRALinear) -> None:
        merge(module)
        module.weight.data *= 1.5

    monkeypatch.setattr(MoELoRALinear, "merge", wrong)
    with pytest.raises(UserError, match=r"golden outputs differ.*this machine serves it wrongly"):
        UniMoER.load(checkpoint, device="cpu")
    UniMoER.load(checkpoint, device="cpu", verify=False)


def test_a_run_serves_what_it_was_trained_for_and_its_card_says_how_well(experiment: Make, tmp_path: Path) -> None:
    """The card's code runs in its folder, its scores are those of the run beside BM25's."""
    specs = {spec.arm: spec for spec in plan_study(tiny.parsed(experiment()), "kill-gate", {}, tiny.CPU).runs}
    for arm in ("bm25", "emb_only"):
        execute(specs[arm], tmp_path / "runs" / f"{arm}-s1")
    model = UniMoER.load(tmp_path / "runs" / "emb_only-s1", device="cpu")
    with pytest.raises(UserError, match=r"was trained for embedding, not for reranking"):
        model.rerank(QUERY, DOCUMENTS)
    model.save(tmp_path / "saved")
    again = UniMoER.load(tmp_path / "saved", device="cpu")
    with pytest.raises(UserError, match=r"was trained for embedding, not for reranking"):
        again.score([(QUERY, "text")])
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| suite | collection | queries | documents | BM25 | search |" in card
    metrics = read_json(next((tmp_path / "runs" / "emb_only-s1").glob("eval/*/final/garden/embedding/metrics.json")))
    assert f"| test | garden | 8 | 30 | 1.000 | {metrics['metrics']['ndcg@10']:.3f} |" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "saved",
        env=tiny.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip("[]\n").split()) == 2
