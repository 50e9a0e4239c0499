"""Both sides of a model under MTEB's own evaluation, on a task made on the spot: the numbers are the model's own."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import CrossEncoderProtocol, EncoderProtocol

import tiny
from unimoer import UniMoER
from unimoer.errors import UserError
from unimoer.evaluation.metrics import evaluate_run, mean
from unimoer.evaluation.search import search
from unimoer.files import read_json, write_json
from unimoer.integrations.mteb import MTEBEmbedder, MTEBReranker
from unimoer.model.checkpoint import save_model

DATA = tiny.dataset("kitchen")
# The same words twice, one after the other: two queries all the same.
FIRST, *OTHERS = DATA.split("test")
QRELS = {FIRST: DATA.split("test")[FIRST], "again": DATA.split("test")[FIRST]} | {
    key: DATA.split("test")[key] for key in OTHERS
}
QUERIES = {key: DATA.queries[FIRST if key == "again" else key] for key in QRELS}
DEPTH = 8
ASKED = "Find the thing"
ASKING = tiny.PROMPTS | {"query": "{instruction}: {query}", "pair": "{instruction}: {query}\n{document}"}
ROUTED = {"rank": 4, "alpha": 8.0, "experts": {"one": 2, "two": 2}, "router": {"type": "softmax"}}


class Kitchen(AbsTaskRetrieval):
    """The tiny kitchen: thirty documents with titles, sixteen queries."""

    metadata = TaskMetadata(
        name="UnimoerKitchen",
        description="Things in a kitchen.",
        dataset={"path": "unimoer/kitchen", "revision": "1"},
        prompt={"query": ASKED},
        type="Retrieval",
        category="t2t",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, **options: Any) -> None:
        rows = [{"id": key, "title": one.title, "text": one.text} for key, one in DATA.corpus.items()]
        split = {
            "corpus": Dataset.from_list(rows),
            "queries": Dataset.from_list([{"id": key, "text": text} for key, text in QUERIES.items()]),
            "relevant_docs": {key: dict(grades) for key, grades in QRELS.items()},
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


def load(base: Path, folder: Path, **changes: Any) -> UniMoER:
    save_model(tiny.build(base, noise=0.3, **changes), folder)
    return UniMoER.load(folder, device="cpu")


@pytest.fixture(scope="module", params=["one LoRA", "routed"])
def model(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> UniMoER:
    changes = {"adapter": ROUTED} if request.param == "routed" else {}
    return load(base, tmp_path_factory.mktemp("mteb") / "checkpoint", **changes)


def evaluated(model: object, task: AbsTaskRetrieval, folder: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """nDCG@10 as MTEB has it, and its score of each document by query; results are kept in `folder`."""
    found = mteb.evaluate(
        model,
        task,
        co2_tracker=False,
        cache=mteb.ResultCache(folder / "cache"),
        prediction_folder=folder / type(model).__name__,
        show_progress_bar=False,
    )
    predictions = json.loads((folder / type(model).__name__ / task.prediction_file_name).read_text())
    return found[0].scores["test"][0]["ndcg_at_10"], predictions["default"]["test"]


def ndcg(run: dict[str, dict[str, float]]) -> float:
    return mean(evaluate_run(QRELS, run, ("ndcg@10",)))["ndcg@10"]


def reranked(model: UniMoER, first: dict[str, dict[str, float]], **options: Any) -> dict[str, dict[str, float]]:
    """`UniMoER.rerank` of each query's best documents, in the order of the first stage."""
    run = {}
    for key, scores in first.items():
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:DEPTH]
        found = model.rerank(QUERIES[key], [DATA.corpus[one].content for one in best], **options)
        run[key] = {best[one.index]: one.score for one in found}
    return run


def same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert found.keys() == expected.keys()
    for key, scores in expected.items():
        assert found[key] == pytest.approx(scores, abs=1e-5), key


def test_both_stages_give_the_models_own_numbers(model: UniMoER, tmp_path: Path) -> None:
    embedder, reranker = MTEBEmbedder(model), MTEBReranker(model)
    own = search(model.model, DATA, QUERIES)
    first, predictions = evaluated(embedder, Kitchen(), tmp_path)
    same(predictions, own)
    assert first == pytest.approx(ndcg(own), abs=1e-4)
    # The second stage of the same task, with the same cache: nothing of the first is taken for it.
    task = Kitchen().convert_to_reranking(tmp_path / "MTEBEmbedder", top_k=DEPTH)
    second, scores = evaluated(reranker, task, tmp_path)
    expected = reranked(model, own)
    same(scores, expected)
    assert second == pytest.approx(ndcg(expected), abs=1e-4) and abs(second - first) > 1e-3
    kept = sorted(path.parent.parent.name for path in (tmp_path / "cache").rglob("UnimoerKitchen.json"))
    assert kept == ["unimoer__embedder", "unimoer__reranker"]


def test_each_is_what_it_says_and_nothing_else(model: UniMoER) -> None:
    embedder, reranker = MTEBEmbedder(model, name="me/mine"), MTEBReranker(model, name="me/mine")
    assert isinstance(embedder, EncoderProtocol) and not isinstance(embedder, CrossEncoderProtocol)
    assert isinstance(reranker, CrossEncoderProtocol) and not isinstance(reranker, EncoderProtocol)
    # Under one name too their results lie apart.
    assert embedder.mteb_model_meta.name == reranker.mteb_model_meta.name == "me/mine"
    assert embedder.mteb_model_meta.revision != reranker.mteb_model_meta.revision
    vectors = model.encode(["a", "b", ""], "document")
    cosines = embedder.similarity(vectors, vectors[:2]).numpy()
    np.testing.assert_allclose(cosines, vectors @ vectors[:2].T, atol=1e-6)
    np.testing.assert_allclose(embedder.similarity_pairwise(vectors[:2], vectors[:2]).numpy(), [1, 1], atol=1e-5)


def test_a_revision_is_all_that_decides_about_its_numbers(base: Path, tmp_path: Path) -> None:
    one = load(base, tmp_path / "one")
    other = load(base, tmp_path / "other", prompts=tiny.PROMPTS | {"pair": "{query}\n\n{document}"})
    revisions = [
        (MTEBEmbedder(m).mteb_model_meta.revision, MTEBReranker(m).mteb_model_meta.revision) for m in (one, other)
    ]
    # Another prompt for pairs is another reranker, and the same embedder.
    assert revisions[0][0] == revisions[1][0] and revisions[0][1] != revisions[1][1]


def test_a_task_instructs_a_prompt_with_a_place_for_it(base: Path, tmp_path: Path) -> None:
    model = load(base, tmp_path / "checkpoint", prompts=ASKING)
    told = search(model.model, DATA, QUERIES, instruction=ASKED)
    _, found = evaluated(MTEBEmbedder(model), Kitchen(), tmp_path)
    same(found, told)
    assert told != search(model.model, DATA, QUERIES)
    task = Kitchen().convert_to_reranking(tmp_path / "MTEBEmbedder", top_k=DEPTH)
    _, scores = evaluated(MTEBReranker(model), task, tmp_path)
    same(scores, reranked(model, told, instruction=ASKED))


def test_a_head_that_reads_lists_gets_the_candidates_of_one_query(base: Path, tmp_path: Path) -> None:
    model = load(base, tmp_path / "checkpoint", reranking={"pooling": "mean", "head": "cosine", "list_size": 3})
    _, own = evaluated(MTEBEmbedder(model), Kitchen(), tmp_path)
    task = Kitchen().convert_to_reranking(tmp_path / "MTEBEmbedder", top_k=DEPTH)
    _, scores = evaluated(MTEBReranker(model), task, tmp_path)
    # Its own prompt has a place for an instruction.
    same(scores, reranked(model, own, instruction=ASKED))


def test_the_task_that_was_not_trained_is_refused(base: Path, tmp_path: Path) -> None:
    load(base, tmp_path)
    for task, refused in (("embedding", MTEBReranker), ("reranking", MTEBEmbedder)):
        write_json(tmp_path / "unimoer.json", read_json(tmp_path / "unimoer.json") | {"tasks": [task]})
        with pytest.raises(UserError, match=f"was trained for {task}, not for"):
            refused(UniMoER.load(tmp_path, device="cpu"))


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "unimoer.integrations.mteb")
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(ImportError, match=re.escape("MTEB is not installed; pip install 'unimoer[mteb]'")):
        importlib.import_module("unimoer.integrations.mteb")
