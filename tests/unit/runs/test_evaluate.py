"""What is ranked, cut and fused where queries are documents of the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.data import write_beir
from unimoer.data.trec import read_trec
from unimoer.files import read_json
from unimoer.runs import execute
from unimoer.studies.planning import single_run
from unimoer.types import Document, RetrievalDataset


@pytest.fixture
def arguments(tmp_path: Path) -> Path:
    """As in ArguAna: every query is a document, finds itself first, and has another one to find."""
    texts = {f"d{n}": f"argument about {('tea', 'rain', 'cats', 'bread')[n % 4]} number {n}" for n in range(12)}
    qrels = {f"d{n}": {f"d{n + 4}": 1} for n in range(8)}
    corpus = {key: Document(text) for key, text in texts.items()}
    queries = {key: texts[key] for key in qrels}
    write_beir(RetrievalDataset("arguments", corpus, queries, {"test": qrels}), tmp_path / "arguments")
    return tmp_path / "arguments"


def test_a_querys_own_document_is_in_no_list(
    arguments: Path, experiment: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """It takes no place among the candidates either, and the ceiling is that of the list that is reranked."""
    suite = {
        "collections": {"arguments": {"source": str(arguments), "ignore_identical_ids": True}},
        "rerank_depth": 2,
        "whole_search": True,
    }
    content = experiment(arms=["joint_single"], evaluation__suites={"test": suite})
    execute(single_run(tiny.parsed(content), tiny.CPU), tmp_path / "run")
    files = list((tmp_path / "run").glob("eval/*/final/arguments/*/run.trec"))
    assert {file.parent.name for file in files} >= {"embedding", "reranking", "fused", "search"}
    for file in files:
        lists = read_trec(file)
        assert not [query for query, documents in lists.items() if query in documents], file.parent.name
        if file.parent.name == "reranking":
            assert {len(documents) for documents in lists.values()} == {2}
            listed = sum(f"d{int(query[1:]) + 4}" in documents for query, documents in lists.items())
            assert read_json(file.with_name("metrics.json"))["ceiling"]["recall"] == listed / len(lists)
