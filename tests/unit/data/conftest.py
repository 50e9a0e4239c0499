"""A small data set, as an object and as a BEIR folder, and a cache folder that no test shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimoer.data import write_beir
from unimoer.types import Document, RetrievalDataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNIMOER_CACHE", str(folder))
    return folder


@pytest.fixture
def dataset() -> RetrievalDataset:
    corpus = {
        "d1": Document("Apples grow on trees in the orchard.", "Apple"),
        "d2": Document("Bananas are yellow and curved.", "Banana"),
        "d3": Document("A cherry is small, red and round.", "Cherry"),
        "d4": Document("The orchard holds apples, pears and plums.", "Orchard"),
        "d5": Document("Red apples are sweeter than green apples."),
    }
    queries = {"q1": "orchard apples", "q2": "yellow fruit", "q3": "small red fruit"}
    qrels = {
        "train": {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}},
        "test": {"q3": {"d3": 1}},
    }
    return RetrievalDataset("fruit", corpus, queries, qrels)


@pytest.fixture
def folder(dataset: RetrievalDataset, tmp_path: Path) -> Path:
    path = tmp_path / "fruit"
    write_beir(dataset, path)
    return path
