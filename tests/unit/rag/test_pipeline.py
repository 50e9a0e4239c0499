"""One question on its way: what is found is what the index finds, and each measure is of what was read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from unimoer import UniMoER
from unimoer.config.rag import RagPromptConfig, RetrievalConfig
from unimoer.evaluation.fusion import combine
from unimoer.rag.pipeline import Pipeline
from unimoer.rag.retrieve import Closed, Indexed, Passage, Words
from unimoer.schema import RagQuestion
from unimoer.search import SearchIndex

DATA = tiny.dataset("kitchen")
TEXTS = {key: document.content for key, document in DATA.corpus.items()}
QUERIES = ("find my red kettle", "who owns the golden oven", "a blue bowl near the window", "spoon")


@pytest.fixture(scope="module")
def index(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    found = SearchIndex.create(tmp_path_factory.mktemp("pipeline") / "index", checkpoints["unified"], device="cpu")
    found.add(TEXTS)
    return found


@pytest.mark.parametrize("retrieve", ["fused", "dense", "bm25"])
@pytest.mark.parametrize("rerank", [0, 4, 9])
def test_one_model_finds_what_its_index_finds(index: SearchIndex, retrieve: str, rerank: int) -> None:
    config = RetrievalConfig.model_validate({"retrieve": retrieve, "rerank": rerank, "passages": 4})
    found = Indexed(index, index.model if rerank else None, config)
    for query in QUERIES:
        took: dict[str, float] = {}
        expected = index.search(query, 4, retrieve=retrieve, rerank=rerank)  # type: ignore[arg-type]
        assert found.find(query, took) == [Passage(hit.id, hit.text) for hit in expected.hits]
        assert took.keys() == expected.milliseconds.keys()


def test_another_model_reranks_with_its_own_scores(index: SearchIndex, checkpoints: dict[str, Path]) -> None:
    other = UniMoER.load(checkpoints["reranker"], device="cpu")
    orders = []
    for weight in (0.0, 0.5):
        config = RetrievalConfig(rerank=8, passages=8, first_stage_weight=weight)
        for query in QUERIES:
            first = {hit.id: hit.retrieval for hit in index.search(query, 8).hits}
            scores = dict(zip(first, other.score([(query, TEXTS[key]) for key in first]).tolist(), strict=True))
            both = combine([({"": scores}, 1.0), ({"": first}, weight)])[""]
            ids = [one.id for one in Indexed(index, other, config).find(query, {})]
            orders.append(ids)
            values = [both[key] for key in ids]
            assert ids and np.all(np.diff(values) <= 1e-4), "from the best on"
            assert weight or ids == sorted(first, key=lambda key: -scores[key])
    assert orders[: len(QUERIES)] != orders[len(QUERIES) :]
    own = [[hit.id for hit in index.search(query, 8, rerank=8).hits] for query in QUERIES]
    assert own != orders[len(QUERIES) :], "the two models differ"


def test_words_find_what_an_index_finds_by_words(index: SearchIndex) -> None:
    found = Words(TEXTS, RetrievalConfig(passages=4))
    for query in QUERIES:
        expected = index.search(query, 4, retrieve="bm25").hits
        assert found.find(query, {}) == [Passage(hit.id, hit.text) for hit in expected]
    assert found.find("nothing of it is here xyzzy", {}) == []


class Says:
    """A generator that says one thing, and keeps what it was asked."""

    local = True

    def __init__(self, said: str) -> None:
        self.said, self.seen = said, list[str]()

    def answer(self, message: str) -> str:
        self.seen.append(message)
        return self.said


def question(**changes: object) -> RagQuestion:
    content = {"id": "q", "question": "Where is it?", "answers": ["the corner"], "query": "red kettle"}
    return RagQuestion.model_validate(content | changes)


PASSAGES = {"a": "red kettle\nIt stands in the corner of the kitchen.", "b": "red kettle red kettle\nIt is kept."}


def ask(one: RagQuestion, said: str = "Corner.\nSure.", words: int = 100, passages: int = 2) -> tuple[object, Says]:
    says = Says(said)
    retriever = Words(PASSAGES, RetrievalConfig(passages=passages))
    prompt = RagPromptConfig(with_passages="{passages}{question}", passage="<{passage}>", passage_words=words)
    return Pipeline(retriever, says, prompt).ask(one), says


def test_an_answer_has_its_scores() -> None:
    found, says = ask(question(passages=["a", "z"]))
    [message] = says.seen
    # Searched by the query, asked with the question.
    assert message.endswith(">Where is it?") and sorted(message.split("<")[1:])[0].startswith("red kettle\nIt stands")
    scores = found.model_dump()  # type: ignore[attr-defined]
    assert scores.pop("milliseconds").keys() == {"bm25", "generate"}
    assert sorted(scores.pop("passages")) == ["a", "b"]
    assert scores == {
        "id": "q",
        "answer": "Corner.",
        "exact_match": 1.0,
        "f1": 1.0,
        "contains": 1.0,
        "answer_recall": 1.0,
        "passage_recall": 0.5,
    }


def test_an_answer_that_was_cut_off_was_not_read() -> None:
    assert ask(question(), words=100)[0].answer_recall == 1.0  # type: ignore[attr-defined]
    found, says = ask(question(), words=4)
    assert found.answer_recall == 0.0 and "corner" not in says.seen[0]  # type: ignore[attr-defined]


def test_what_cannot_be_said_of_a_question_is_not_said() -> None:
    found, _ = ask(question(answers=["no"]), said="No")
    assert (found.exact_match, found.answer_recall, found.passage_recall) == (1.0, None, None)  # type: ignore[attr-defined]
    closed = Pipeline(Closed(), Says("corner"), RagPromptConfig()).ask(question(passages=["a"]))
    assert (closed.answer_recall, closed.passage_recall, closed.passages) == (None, None, [])
    assert closed.milliseconds.keys() == {"generate"} and closed.exact_match == 1.0


def test_nothing_found_is_a_closed_book() -> None:
    says = Says("")
    prompt = RagPromptConfig(without="Closed: {question}")
    found = Pipeline(Words(PASSAGES, RetrievalConfig()), says, prompt).ask(question(query="xyzzy"))
    assert says.seen == ["Closed: Where is it?"] and found.answer_recall == 0.0 and found.answer == ""


def test_a_server_is_not_asked_to_warm_up() -> None:
    near, far = Says("x"), Says("x")
    far.local = False
    for says in (near, far):
        Pipeline(Words(PASSAGES, RetrievalConfig()), says, RagPromptConfig()).warm(question())
    assert (len(near.seen), far.seen) == (1, [])
