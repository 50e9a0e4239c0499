"""What serving costs is counted on the model as served, over all data sets, one request at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.evaluation import serving
from unimoer.evaluation.serving import Traffic, serving_costs, weight_bytes
from unimoer.model.backbone import resolve_dtype
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


class Clock:
    """Time that passes only where it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_a_request_is_timed_at_its_second_call_and_its_list_is_cut(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes 100 s here, the second 2 s."""
    clock, seen, lists = Clock(), set[str](), []
    encode, rerank = serving.encode, serving.rerank

    def pass_time(request: str) -> None:
        clock.now += 2.0 if request in seen else 100.0
        seen.add(request)

    def slow_encode(model: Any, ids: Any) -> Any:
        pass_time(f"embed {ids}")
        return encode(model, ids)

    def slow_rerank(model: Any, dataset: Any, queries: Any, shortlist: Any, **more: Any) -> Any:
        pass_time(f"rerank {queries}")
        lists.append(sum(map(len, shortlist.values())))
        return rerank(model, dataset, queries, shortlist, **more)

    monkeypatch.setattr(serving, "time", clock)
    monkeypatch.setattr(serving, "encode", slow_encode)
    monkeypatch.setattr(serving, "rerank", slow_rerank)
    model = tiny.build(base, adapter=ROUTED, noise=0.1).for_inference()
    found = serving_costs(model, traffic(2, 1), list(Task), requests=100, depth=2)
    assert {key: value for key, value in found.items() if "ms" in key} == {
        f"{task}_ms{which}": 2000.0 for task in Task for which in ("", "_p95")
    }
    assert lists == [2] * 6, "three queries, twice each"


def test_a_query_without_candidates_is_no_reranking_request(base: Path) -> None:
    kitchen, garden = traffic(2, 1)
    empty = Traffic(garden.dataset, garden.queries, {garden.queries[0]: {}})
    found = serving_costs(tiny.build(base), [empty], list(Task), requests=9, depth=2)
    assert "embedding_ms" in found and "reranking_ms" not in found
    bare = Traffic(kitchen.dataset, kitchen.queries, {kitchen.queries[1]: {"d0": 1.0}})
    assert serving._choose([empty, bare], Task.RERANKING, 9) == [(bare, kitchen.queries[1])]


def test_without_queries_or_requests_there_is_no_latency(base: Path) -> None:
    model = tiny.build(base)
    assert list(serving_costs(model, traffic(0, 0), list(Task), requests=5, depth=2)) == ["weights_mb"]
    assert list(serving_costs(model, traffic(2, 2), list(Task), requests=0, depth=2)) == ["weights_mb"]


def test_a_score_head_that_an_arm_has_no_use_for_is_not_counted(base: Path) -> None:
    model = tiny.build(base, reranking={"pooling": "last", "head": "mlp"})
    alone, both = (serving_costs(model, [], tasks, requests=0, depth=1) for tasks in ([Task.EMBEDDING], list(Task)))
    head = sum(p.nbytes for p in model.head.parameters())
    assert both["weights_mb"] - alone["weights_mb"] == pytest.approx(head / 2**20) and head > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_lora_weighs_nothing_and_experts_do(dtype: str, base: Path) -> None:
    bare = weight_bytes([tiny.build(base, adapter={"rank": 1, "targets": ["q_proj"]}, dtype=dtype).for_inference()])
    merged, routed = (tiny.build(base, adapter=adapter, dtype=dtype) for adapter in ({"rank": 4}, ROUTED))
    assert weight_bytes([merged.for_inference()]) == bare
    # In the base's precision, as they are served.
    size = resolve_dtype(dtype, tiny.CPU).itemsize
    experts = sum(p.numel() * size for name, p in routed.named_parameters() if ".a." in name or ".b." in name)
    routed.for_inference()
    routers = sum(p.nbytes for name, p in routed.named_parameters() if "router" in name or "sparsity" in name)
    routers += sum(buffer.nbytes for name, buffer in routed.named_buffers() if ".routers." in name)
    assert experts > 0 and routers > 0 and weight_bytes([routed]) == bare + experts + routers
