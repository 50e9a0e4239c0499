"""`/v1/embeddings`: the library's numbers, in OpenAI's shapes."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import tiktoken
from starlette.testclient import TestClient

from unimoer import UniMoER
from unimoer.errors import UserError
from unimoer.serving.token_ids import decoder

TEXTS = ["The red kettle stands in the corner.", "A bench.", "الغلاية الحمراء", "قطة 🐈‍⬛ e\u0301 ṩ", "a\0b"]


def vectors(answer: dict) -> np.ndarray:  # type: ignore[type-arg]
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def test_they_are_the_librarys(client: TestClient, model: UniMoER) -> None:
    for kind in ("query", "document"):
        answer = client.post("/v1/embeddings", json={"input": TEXTS, "input_type": kind}).json()
        np.testing.assert_allclose(vectors(answer), model.encode(TEXTS, kind), atol=1e-5)
        assert answer["object"] == "list" and answer["model"] == "tiny-model"
    tokens = sum(len(ids) for ids in model.model.prompter.documents(TEXTS))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "shortened": 0}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "document"),
        ({"model": "tiny-model:query"}, "query"),
        ({"model": "tiny-model:document"}, "document"),
        ({"model": "tiny-model:document", "input_type": "search_query"}, "query"),
        ({"task": "retrieval.passage"}, "document"),
        ({"task": "retrieval.query"}, "query"),
    ],
)
def test_a_client_says_what_a_text_is(client: TestClient, model: UniMoER, body: dict[str, str], kind: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": TEXTS[0], **body}).json()
    np.testing.assert_allclose(vectors(answer), model.encode(TEXTS[:1], kind), atol=1e-5)  # type: ignore[arg-type]


def test_base64_is_the_same_numbers(client: TestClient) -> None:
    plain, packed = (
        client.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": form}).json()
        for form in ("float", "base64")
    )
    unpacked = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed["data"]]
    np.testing.assert_array_equal(np.stack(unpacked), vectors(plain))


def test_shorter_vectors_have_unit_length(client: TestClient, model: UniMoER) -> None:
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": 3}).json()
    np.testing.assert_allclose(vectors(answer), model.encode(TEXTS, "document", dim=3), atol=1e-5)
    answer = client.post("/v1/embeddings", json={"input": "a", "dimensions": model.dimension + 1})
    assert answer.status_code == 400 and f"the model has {model.dimension}" in answer.json()["error"]["message"]


def test_equal_texts_have_equal_vectors(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"input": [TEXTS[0], *TEXTS, TEXTS[0]]}).json()
    found = vectors(answer)
    assert (found[0] == found[1]).all() and (found[0] == found[-1]).all()


@pytest.mark.parametrize(("given", "field"), [("", "input"), ([], "input"), (["a", ""], "input[1]")])
def test_nothing_has_no_vector(client: TestClient, given: object, field: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"{field}: is empty"


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2], [3]]])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_token_ids_of_nobody_are_refused(client: TestClient, given: object, form: str) -> None:
    answer = client.post("/v1/embeddings", json={"input": given, "encoding_format": form})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "token_ids_refused"
    assert "--token-ids" in error["message"] and "check_embedding_ctx_length=False" in error["message"]


def test_token_ids_of_a_known_tokenizer_are_text(serve, model: UniMoER) -> None:  # type: ignore[no-untyped-def]
    client = serve(token_ids="own")
    ids = model.model.tokenizer(TEXTS[:2], add_special_tokens=False).input_ids
    answer = client.post("/v1/embeddings", json={"input": ids}).json()
    np.testing.assert_allclose(vectors(answer), model.encode(TEXTS[:2], "document"), atol=1e-5)
    answer = client.post("/v1/embeddings", json={"input": ids[0]}).json()
    np.testing.assert_allclose(vectors(answer), model.encode(TEXTS[:1], "document"), atol=1e-5)
    answer = client.post("/v1/embeddings", json={"input": [10_000_000]})
    assert answer.status_code == 400 and "token id" in answer.json()["error"]["message"]


def test_another_tokenizers_folder_can_be_named(model: UniMoER, base) -> None:  # type: ignore[no-untyped-def]
    decode = decoder(str(base), model.model.tokenizer)
    assert decode(model.model.tokenizer(TEXTS[0], add_special_tokens=False).input_ids) == TEXTS[0]


def test_a_long_text_is_cut_and_usage_says_so(client: TestClient, model: UniMoER) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["kettle " * 40_000, "bench"]}).json()
    assert answer["usage"]["shortened"] == 1
    assert answer["usage"]["prompt_tokens"] < 2 * model.model.config.prompts.max_document_tokens + 40


def test_tiktoken(model: UniMoER, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = tiktoken.Encoding(
        "letters", pat_str=".", mergeable_ranks={bytes([value]): value for value in range(256)}, special_tokens={}
    )
    # Its vocabularies come from the network.
    monkeypatch.setattr(tiktoken, "get_encoding", {"letters": letters}.__getitem__)
    decode = decoder("tiktoken:letters", model.model.tokenizer)
    assert decode(letters.encode("Kessel: 🫖")) == "Kessel: 🫖"
    with pytest.raises(ValueError, match="letters"):
        decode([300])
    with pytest.raises(UserError, match="cannot be loaded"):
        decoder("tiktoken:other", model.model.tokenizer)
