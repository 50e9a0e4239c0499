"""`configs/qwen3_msmarco.yaml` as it is, on stand-ins for what it would download: a tiny Qwen3 and small data sets.

Everything else stays: bfloat16, left padding, gradient checkpointing, the yes/no head at the last token, Qwen3's
templates, triplets and pairs for training, BEIR-style data sets for evaluation.
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

import tiny
from unimoer.cli import main
from unimoer.cli.options import config_folder
from unimoer.files import read_json


def save_triplets(domain: str, folder: Path, *, negatives: bool) -> Path:
    """As sentence-transformers publishes them: rows of texts without ids."""
    data = tiny.dataset(domain)
    rows: list[dict[str, str]] = []
    for query, grades in data.qrels["train"].items():
        for document in grades:
            row = {"query": data.queries[query], "positive" if negatives else "answer": data.corpus[document].content}
            if negatives:
                row["negative"] = data.corpus[f"d{(int(document[1:]) + 7) % 30}"].content
            rows.append(row)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder)
    return folder


def save_retrieval(domain: str, folder: Path) -> Path:
    """As MTEB publishes them: corpus, queries and judgements side by side."""
    data = tiny.dataset(domain)
    corpus = [{"_id": key, "title": found.title, "text": found.text} for key, found in data.corpus.items()]
    queries = [{"_id": key, "text": text} for key, text in data.queries.items()]
    qrels = [
        {"query-id": query, "corpus-id": document, "score": float(grade)}
        for query, grades in data.qrels["test"].items()
        for document, grade in grades.items()
    ]
    datasets.DatasetDict({"corpus": datasets.Dataset.from_list(corpus)}).save_to_disk(folder / "corpus")
    datasets.DatasetDict({"queries": datasets.Dataset.from_list(queries)}).save_to_disk(folder / "queries")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(qrels)}).save_to_disk(folder / "default")
    return folder


@pytest.fixture(scope="module")
def settings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((config_folder() / "qwen3_msmarco.yaml").read_text())
    folder = tmp_path_factory.mktemp("stand-ins")
    content["model"]["base"] = str(base)
    content["seeds"] = [42]
    kinds = cycle(tiny.THINGS)
    for name, domain in content["data"]["domains"].items():
        found = save_triplets(next(kinds), folder / name, negatives="triplet" in domain["source"])
        domain |= {"source": f"hf:{found}", "documents": 25}
    for name, collection in content["evaluation"]["suites"]["beir"]["collections"].items():
        collection["source"] = f"hf:{save_retrieval(next(kinds), folder / name)}"
    for task in ("embedding", "reranking"):
        content["training"][task] |= {"steps": 2, "batch_size": 4}
    content["training"]["reranking"]["negatives"] = 2
    content["training"]["probe"] = {"every": 2, "batch_size": 4}
    content["evaluation"]["suites"]["beir"] |= {"rerank_depth": 4, "queries": 5}
    return content


def test_the_configuration_runs_on_stand_ins(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "stand_in.yaml"
    config.write_text(json.dumps(settings))
    with pytest.raises(SystemExit) as stopped:
        main(["run", "kill-gate", "--config", str(config), "--output", str(tmp_path / "out"), "--device", "cpu"])
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0, err) == (0, "")
    decision = read_json(tmp_path / "out" / "decision.json")
    assert decision["verdict"] in out
    declared = read_json(tmp_path / "out" / "plan.json")["declared"]
    collections = settings["evaluation"]["suites"]["beir"]["collections"]
    assert declared["suites"]["beir"]["collections"].keys() == collections.keys()

    [joint] = (tmp_path / "out" / "runs").glob("joint_single-*")
    lines = tiny.lines(joint / "metrics.jsonl")
    assert [line["task"] for line in lines] == ["embedding", "reranking"] * 2
    assert {line["domain"] for line in lines} <= settings["data"]["domains"].keys()
    assert {"bce", "infonce"} <= {key for line in lines for key in line}
    assert [line["step"] for line in tiny.lines(joint / "gradient_conflicts.jsonl")] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    description = read_json(joint / "checkpoints" / "final" / "unimoer.json")["model"]
    assert description["prompts"]["query"] == "Instruct: {instruction}\nQuery:{query}"
    assert (description["padding"], description["dtype"]) == ("left", "bfloat16")

    source = collections["scifact"]["source"]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(joint), "--data", source, "--queries", "3", "--depth", "3", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0, err) == (0, "")
    assert "scifact" in out
