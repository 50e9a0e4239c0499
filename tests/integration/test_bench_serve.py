"""The benchmarks of the server: every answer is compared with the library's, and a wrong one is seen."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from unimoer.benchmarks.serve import Ask, bench_serve
from unimoer.benchmarks.serving_memory import bench_serving_memory

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.assets]


def test_a_whole_run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_serve(Console(quiet=True), model=str(checkpoint), device="cpu", clients=3, requests=8, pairs=2, minutes=0.02)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    for kind in ("query", "embed", "rerank"):
        assert line[kind]["statuses"] == {"200": 16 if kind == "query" else 6}
        assert line[kind]["wrong"] == line[kind]["lost"] == 0
        assert line[kind]["ratio"] > 0 and line[kind]["p99_ms"] >= line[kind]["p50_ms"] > 0
    assert line["mixed"]["requests"] > 0 and line["mixed"]["wrong"] == 0


def test_memory_of_one_and_of_two(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_serving_memory(Console(quiet=True), model=str(checkpoint), pairs=1)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    # Of a tiny model, the runtime is everything.
    assert 0.4 < line["peak"]["ratio"] < 0.7 and 0.4 < line["share"]["ratio"] < 1


def test_a_wrong_answer_is_seen() -> None:
    vectors = np.eye(2)
    embed = Ask("/v1/embeddings", b"", 2, vectors)
    one, two = ({"embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()} for row in vectors)
    assert embed.right({"data": [one, two]})
    assert not embed.right({"data": [two, one]})
    assert not embed.right({"data": [one]})
    rerank = Ask("/v1/rerank", b"", 2, np.array([0.9, 0.1]))
    assert rerank.right({"results": [{"index": 0, "relevance_score": 0.9}, {"index": 1, "relevance_score": 0.1}]})
    assert not rerank.right({"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]})
    assert not rerank.right({"results": [{"index": 0, "relevance_score": 0.9}]})
