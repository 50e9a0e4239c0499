"""What serving costs is counted on the model as served, over all data sets, one request at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.evaluation import serving
from unimoer.evaluation.serving import Traffic, serving_costs, weight_bytes
from unimoer.types import Task

ROUTED = {"rank": 4, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": "sparsegen"}}


def traffic(*sizes: int) -> list[Traffic]:
    found = []
    for domain, size in zip(tiny.THINGS, sizes, strict=True):
        data = tiny.dataset(domain)
        queries = sorted(data.qrels["test"])[:size]
        found.append(Traffic(data, queries, {query: {"d0": 2.0, "d1": 1.5, "d2": 1.0} for query in queries}))
    return found


def test_requests_come_from_all_data_sets_in_turn(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, Task]] = []

    def timed(model: object, source: Traffic, query: str, task: Task, depth: int) -> float:
        asked.append((source.dataset.name, query, task))
        return float(len(asked))

    monkeypatch.setattr(serving, "_milliseconds", timed)
    kitchen, garden = sources = traffic(4, 1)
    found = serving_costs(tiny.build(base), sources, [Task.EMBEDDING], requests=3, depth=2)
    first, second = kitchen.queries[:2]
    order = [("kitchen", first), ("garden", garden.queries[0]), ("kitchen", second)]
    assert [(name, query) for name, query, _ in asked] == order
    assert found["embedding_ms"] == 2.0 and found["embedding_ms_p95"] == pytest.approx(2.9)
    assert "reranking_ms" not in found


def test_every_request_is_made_twice_and_timed_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists: list[int] = []
    real = serving.rerank

    def counted(model: Any, dataset: Any, queries: Any, shortlist: Any, **more: Any) -> Any:
        lists.append(sum(map(len, shortlist.values())))
        return real(model, dataset, queries, shortlist, **more)

    monkeypatch.setattr(serving, "rerank", counted)
    model = tiny.build(base, adapter=ROUTED, noise=0.1).for_inference()
    found = serving_costs(model, traffic(2, 1), list(Task), requests=100, depth=2)
    assert lists == [2] * 6, "three queries, twice each, their candidates cut at the depth"
    assert 0 < found["embedding_ms"] <= found["embedding_ms_p95"] and found["reranking_ms"] > 0


def test_without_queries_or_requests_there_is_no_latency(base: Path) -> None:
    model = tiny.build(base)
    assert list(serving_costs(model, traffic(0, 0), list(Task), requests=5, depth=2)) == ["weights_mb"]
    assert list(serving_costs(model, traffic(2, 2), list(Task), requests=0, depth=2)) == ["weights_mb"]


def test_a_merged_lora_weighs_nothing_and_experts_do(base: Path) -> None:
    bare = weight_bytes([tiny.build(base, adapter={"rank": 1, "targets": ["q_proj"]}).for_inference()])
    merged, routed = (tiny.build(base, adapter=adapter).for_inference() for adapter in ({"rank": 4}, ROUTED))
    assert weight_bytes([merged]) == bare
    experts = sum(a.numel() * 4 for name, a in routed.named_parameters() if ".a." in name or ".b." in name)
    routers = sum(p.numel() * 4 for name, p in routed.named_parameters() if "router" in name or "sparsity" in name)
    assert experts > 0 and routers > 0 and weight_bytes([routed]) == bare + experts + routers
