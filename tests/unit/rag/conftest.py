"""Questions about the kitchen, one model for both stages, and two that are others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import RagConfig, parse_rag
from unimoer.model.checkpoint import save_model

Make = Callable[..., RagConfig]


@pytest.fixture(scope="session")
def checkpoints(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rag")
    for seed, name in enumerate(("unified", "embedder", "reranker")):
        save_model(tiny.build(base, seed=seed, noise=0.3), root / name)
    return {name: root / name for name in ("unified", "embedder", "reranker")}


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every second thing of the kitchen is; the passage that says it is known."""
    data = tiny.dataset("kitchen")
    lines = [
        {"id": query, "question": data.queries[query], "answers": [data.corpus[key].title], "passages": [key]}
        for query, grades in data.qrels["test"].items()
        for key in grades
    ]
    path = tmp_path_factory.mktemp("questions") / "kitchen.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def make(base: Path, checkpoints: dict[str, Path], questions: Path, data: dict[str, Path]) -> Make:
    """A configuration of all four systems over five questions; `changes` replace whole fields."""

    def build(**changes: Any) -> RagConfig:
        content: dict[str, Any] = {
            "questions": {"kitchen": {"source": str(questions), "passages": str(data["kitchen"]), "sample": 5}},
            "unified": str(checkpoints["unified"]),
            "two_models": {"embedder": str(checkpoints["embedder"]), "reranker": str(checkpoints["reranker"])},
            "retrieval": {"rerank": 6, "passages": 2},
            "generator": {"type": "base", "base": str(base), "dtype": "float32", "new_tokens": 6},
            "memory_questions": 2,
        }
        return parse_rag(content | changes, "tiny")

    return build
