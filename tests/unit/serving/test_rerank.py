"""`/v1/rerank` and `/v2/rerank`: the library's order, in the shapes of Jina, Cohere and vLLM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import tiny
from unimoer import UniMoER
from unimoer.model.checkpoint import save_model

QUERY = "find my red kettle"
DOCUMENTS = ["The red kettle stands in the corner.", "A bench.", "The red kettle stands in the corner.", "x" * 300]


def relevance(answer: dict[str, Any]) -> dict[int, float]:
    return {one["index"]: one["relevance_score"] for one in answer["results"]}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_order_is_the_librarys(client: TestClient, model: UniMoER, path: str) -> None:
    answer = client.post(path, json={"query": QUERY, "documents": DOCUMENTS}).json()
    assert [one["index"] for one in answer["results"]] == [one.index for one in model.rerank(QUERY, DOCUMENTS)]
    scores = model.score([(QUERY, text) for text in DOCUMENTS])
    found = relevance(answer)
    np.testing.assert_allclose([found[n] for n in range(4)], model.model.head.relevance(scores), rtol=1e-4)
    assert answer["meta"]["api_version"]["version"] == ("2" if "v2" in path else "1")
    assert "document" not in answer["results"][0]
    # Equal texts: equal scores, in the order given.
    assert found[0] == found[2]
    order = [one["index"] for one in answer["results"]]
    assert order.index(0) == order.index(2) - 1


def test_shapes_of_other_servers(client: TestClient) -> None:
    plain = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()
    objects = [{"text": text, "title": "ignored"} for text in DOCUMENTS]
    for body in ({"documents": objects}, {"texts": DOCUMENTS}, {"documents": [objects[0], *DOCUMENTS[1:]]}):
        assert relevance(client.post("/v1/rerank", json={"query": QUERY, **body}).json()) == relevance(plain)
    # What an external reranker of Open WebUI is sent: the model's name, and a number of results.
    body = {"model": "tiny-model", "query": QUERY, "documents": DOCUMENTS, "top_n": 4}
    assert relevance(client.post("/v1/rerank", json=body).json()) == relevance(plain)


@pytest.mark.parametrize(("top_n", "expected"), [(1, 1), (2, 2), (4, 4), (99, 4), (None, 4)])
def test_top_n(client: TestClient, top_n: int | None, expected: int) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "top_n": top_n, "return_documents": True}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert len(results) == expected
    assert all(one["document"] == {"text": DOCUMENTS[one["index"]]} for one in results)


@pytest.mark.parametrize("top_n", [0, -1, 1.5, "2"])
def test_top_n_must_be_a_positive_number(client: TestClient, top_n: object) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_n": top_n})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "top_n"


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u3000"])
def test_a_blank_document_keeps_its_place_and_is_last(client: TestClient, blank: str) -> None:
    documents = [blank, DOCUMENTS[0], {"text": blank}, DOCUMENTS[1]]
    found = client.post("/v1/rerank", json={"query": QUERY, "documents": documents}).json()["results"]
    assert [one["index"] for one in found[2:]] == [0, 2]
    assert [one["relevance_score"] for one in found[2:]] == [0.0, 0.0]
    alone = client.post("/v1/rerank", json={"query": QUERY, "documents": [blank]}).json()
    assert relevance(alone) == {0: 0.0}


def test_no_documents_no_results(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": []})
    assert answer.status_code == 200 and answer.json()["results"] == []


@pytest.mark.parametrize("query", ["", "  "])
def test_an_empty_query_is_refused(client: TestClient, query: str) -> None:
    answer = client.post("/v1/rerank", json={"query": query, "documents": DOCUMENTS})
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "query: is empty"


@pytest.mark.parametrize("beside", [0, 2, 5, 63])
def test_a_score_does_not_depend_on_the_other_documents(client: TestClient, beside: int) -> None:
    others = [f"{'The bench is very old. ' * (number % 7)}{number}" for number in range(beside)]
    found = client.post("/v1/rerank", json={"query": QUERY, "documents": [*others, DOCUMENTS[0]]}).json()
    alone = client.post("/v1/rerank", json={"query": QUERY, "documents": [DOCUMENTS[0]]}).json()
    assert relevance(found)[beside] == pytest.approx(relevance(alone)[0], abs=1e-5)


def test_two_queries_at_once_never_share_one(client: TestClient) -> None:
    queries = [f"where is the {colour} kettle" for colour in ("red", "green", "blue", "white", "black", "golden")]
    alone = [relevance(client.post("/v1/rerank", json={"query": q, "documents": DOCUMENTS}).json()) for q in queries]
    assert len({tuple(one.values()) for one in alone}) == len(queries)
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            bodies = [{"query": query, "documents": DOCUMENTS} for query in queries]
            asked = [pool.submit(client.post, "/v1/rerank", json=body) for body in bodies]
            for answer, expected in zip(asked, alone, strict=True):
                found = relevance(answer.result().json())
                assert found == pytest.approx(expected, abs=1e-5)


def test_numbers_are_between_0_and_1_and_tell_near_ties_apart(client: TestClient, model: UniMoER) -> None:
    documents = [f"{text} {'and ' * number}" for text in DOCUMENTS[:2] for number in range(30)]
    read = {tuple(ids) for ids in model.model.prompter.pairs([QUERY] * 60, documents)}
    found = list(relevance(client.post("/v1/rerank", json={"query": QUERY, "documents": documents}).json()).values())
    assert all(0 <= one <= 1 for one in found)
    assert len(set(found)) == len(read) > 20


def test_scripts_and_signs_of_the_world(client: TestClient) -> None:
    documents = [
        "الغلاية في المطبخ",
        "הקומקום האדום",
        "🫖👩🏽‍🍳",
        "e\u0301\u0323\u0308" * 50,
        "\u202ebackwards\u202c",
        "a\0b",
        "𠜎",
    ]
    answer = client.post("/v1/rerank", json={"query": "🫖", "documents": documents, "return_documents": True}).json()
    assert {one["index"]: one["document"]["text"] for one in answer["results"]} == dict(enumerate(documents))


def test_a_very_long_document_is_cut(client: TestClient, model: UniMoER) -> None:
    body = {"query": QUERY, "documents": ["red kettle " * 30_000, DOCUMENTS[0]]}
    answer = client.post("/v1/rerank", json=body).json()
    assert answer["usage"]["shortened"] == 1
    prompts = model.model.config.prompts
    assert answer["usage"]["total_tokens"] < 4 * (prompts.max_document_tokens + prompts.max_query_tokens + 100)


PROMPTS = {
    **tiny.PROMPTS,
    "pair": "{instruction}<|im_start|>{query}<|im_end|>{document}",
    "candidates": "{instruction}{query}{mark}\n{candidates}{query}{mark}",
    "candidate": "{document}{mark}\n",
}


@pytest.mark.parametrize("head", ["yes_no", "interaction", "listwise"])
def test_an_instruction_is_text_like_any_other(serve: Any, base: Path, tmp_path: Path, head: str) -> None:
    pooling = "last" if head == "yes_no" else "mean"
    save_model(
        tiny.build(base, reranking={"head": head, "pooling": pooling}, prompts=PROMPTS, noise=0.3), tmp_path / "it"
    )
    model = UniMoER.load(tmp_path / "it", device="cpu")
    client = serve(model=model)

    def ask(**body: Any) -> dict[int, float]:
        answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS[:2], **body})
        assert answer.status_code == 200, answer.text
        return relevance(answer.json())

    told = ask(instruction="Find what is cold")
    scores = {one.index: one.score for one in model.rerank(QUERY, DOCUMENTS[:2], instruction="Find what is cold")}
    expected = model.model.head.relevance(np.array([scores[0], scores[1]]))
    np.testing.assert_allclose([told[0], told[1]], expected, rtol=1e-4)
    assert told != ask()
    # Neither control tokens nor marks nor any number of words change what it is.
    assert ask(instruction="Find\0 what<|im_end|> is<|im_<|im_end|>end|> cold") == told
    assert ask(instruction="a " * 4000) == ask(instruction="a " * 3000)


def test_usage_says_what_was_cut(serve: Any, base: Path, tmp_path: Path) -> None:
    save_model(tiny.build(base, reranking={"head": "listwise", "pooling": "mean"}, prompts=PROMPTS), tmp_path / "lists")
    for model in (None, UniMoER.load(tmp_path / "lists", device="cpu")):
        client = serve() if model is None else serve(model=model)
        body = {"query": "red kettle " * 3000, "documents": ["bench " * 60_000, DOCUMENTS[0]]}
        usage = client.post("/v1/rerank", json=body).json()["usage"]
        assert usage["shortened"] == 2 and 20 < usage["total_tokens"] < 400


@pytest.mark.parametrize("text", ["\0", "<|im_end|>", "\u200b\ufeff", " \u00ad\n", "<|im_end|>\0 "])
def test_what_no_reader_sees_is_blank(client: TestClient, model: UniMoER, text: str) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": [text, *DOCUMENTS[:2]]}).json()
    assert relevance(answer)[0] == 0 and answer["results"][-1]["index"] == 0
    assert model.rerank(QUERY, [text, *DOCUMENTS[:2]])[-1].index == 0
    assert client.post("/v1/rerank", json={"query": text, "documents": DOCUMENTS}).status_code == 400
    embedded = client.post("/v1/embeddings", json={"input": ["a", text]})
    if model.model.prompter.clean(text):
        assert embedded.status_code == 200
    else:
        assert embedded.status_code == 400 and embedded.json()["error"]["message"] == "input[1]: is empty"
