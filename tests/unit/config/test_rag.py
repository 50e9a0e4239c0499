"""The configuration of retrieval-augmented generation: the shipped file loads, a mistake is one line with its field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from unimoer.config import load_rag, parse_rag
from unimoer.errors import UserError

ROOT = Path(__file__).parents[3]
SHIPPED, PAGE = ROOT / "configs" / "rag.yaml", ROOT / "docs" / "rag.md"


def content(**changes: Any) -> dict[str, Any]:
    return {"questions": {"cwe": {"source": "embedded:cwe"}}} | changes


def test_the_shipped_configuration_survives_a_round_trip() -> None:
    config = load_rag(SHIPPED)
    assert config.name == "rag" and config.systems == ("unified", "bm25_only", "no_retrieval")
    assert parse_rag(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again") == config


def test_settings_can_be_changed_one_by_one() -> None:
    two = ["two_models.embedder=runs/a", "two_models.reranker=runs/b", "baselines=[]"]
    assert load_rag(SHIPPED, two).systems == ("unified", "two_models")
    server = ["generator.type=endpoint", "generator.url=http://127.0.0.1/v1", "generator.model=m"]
    assert load_rag(SHIPPED, server).generator.type == "endpoint"
    with pytest.raises(
        UserError, match=r"^--set retrieval.rrank=1: retrieval.rrank: unknown key; did you mean 'rerank'"
    ):
        load_rag(SHIPPED, ["retrieval.rrank=1"])


def test_the_questions_of_the_page_are_valid() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {name: one for block in blocks for name, one in parse_rag(yaml.safe_load(block), "page").questions.items()}
    assert {"mine", "nq", "nq-judged", "triviaqa", "hotpotqa"} <= found.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": {}}, "questions: dictionary should have at least 1 item"),
        ({"questions": {"../up": {"source": "x"}}}, "questions"),
        (
            {"questions": {"a": {"source": "q.jsonl", "ask": "descriptions"}}},
            "questions.a: ask: is of embedded domains",
        ),
        ({"questions": {"a": {"source": "ir:x", "split": "dev"}}}, "questions.a: split: is of `embedded:` and `hf:`"),
        (
            {"questions": {"a": {"source": "embedded:cwe", "ask": "descriptions", "split": "dev"}}},
            "questions.a: split: descriptions are of all documents",
        ),
        ({"questions": {"a": {"source": "hf:x", "answers": "hf:y"}}}, "questions.a: answers: is an `hf:` source"),
        ({"questions": {"a": {"source": "ir:x", "answers": "y.jsonl"}}}, "questions.a: answers: is an `hf:` source"),
        ({"unified": None, "baselines": []}, "unified: no system is left; name a checkpoint"),
        ({"two_models": {"embedder": "a", "reranker": "b"}}, "retrieval.rerank: is 0, so the second of two_models"),
        ({"two_models": {"embedder": "a"}}, "two_models.reranker: required, but missing"),
        ({"retrieval": {"rerank": 2, "passages": 3}}, "retrieval: rerank: 2 is below passages, 3"),
        ({"prompt": {"without": "Who?"}}, "prompt.without: must contain {question} exactly once"),
        ({"prompt": {"with_passages": "{question}"}}, "prompt.with_passages: must contain {passages} exactly once"),
        ({"generator": {"url": "x"}}, "generator.type: required, but missing"),
        ({"generator": {"type": "bse"}}, "generator.type: unknown 'bse'; did you mean 'base'"),
        ({"generator": {"type": "endpoint", "url": "ftp://x", "model": "m"}}, "generator.endpoint.url: "),
        ({"generator": {"type": "endpoint", "url": "http://x", "model": "m", "key_variable": "$K"}}, "key_variable: "),
        ({"baselines": ["bm25"]}, "baselines.0: "),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rag(content(**changes), "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {message}") or (message in str(caught.value))
    assert "\n" not in str(caught.value)
