"""What the benchmarks compare is the same computation, and their arithmetic is right; how fast it is, no test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import tiny
from unimoer.benchmarks import encode, memory, rerank
from unimoer.benchmarks.arms import LoopOverExperts, bench_arms
from unimoer.benchmarks.encode import bench_encode, bench_encode_arms
from unimoer.benchmarks.pairs import Ratio, alternate, report
from unimoer.benchmarks.rerank import bench_rerank
from unimoer.benchmarks.train import bench_train
from unimoer.config import AdapterConfig
from unimoer.config.router import SparsegenConfig
from unimoer.errors import UserError
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.routing import Routing


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("routed", [True, False])
def test_the_loop_over_experts_computes_what_the_layer_computes(tokens: int, routed: bool) -> None:
    torch.manual_seed(0)
    linears = {"q_proj": nn.Linear(10, 8), "k_proj": nn.Linear(10, 4)}
    ranks = {"embedding": 2, "reranking": 3}
    config = AdapterConfig(rank=5, targets=("k_proj", "q_proj"), experts=ranks, router=SparsegenConfig())
    layer = MoELoRALinear(linears, config, ranks)
    tiny.stir(layer, 0.5)
    x, residual = torch.randn(2, 5, 10), torch.randn(2, 5, 12)
    routing = Routing(tuple(ranks), torch.rand(2, tokens, 2).softmax(-1)) if routed else None
    expected = layer(x, routing, residual)
    layer.__class__ = LoopOverExperts
    assert tiny.relative(layer(x, routing, residual), expected) < 1e-6


def test_contenders_take_turns_and_swap_who_goes_first() -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = alternate(contenders, device=tiny.CPU, pairs=3, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_a_gpu_has_finished_whenever_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the start, so that no work of the other contender is counted, and before the end."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(f"wait for {device}"))
    alternate({"a": lambda: calls.append("run")}, device=torch.device("cuda", 1), pairs=2, warmup=0)
    assert calls == ["wait for cuda:1", "run", "wait for cuda:1"] * 2
    calls.clear()
    alternate({"a": lambda: calls.append("run")}, device=tiny.CPU, pairs=1, warmup=0)
    assert calls == ["run"]


def test_the_ratio_is_of_pairs_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"ours": [1.0, 2.0, 1.0], "peer": [2.0, 2.0, 4.0], "other": [1.0, 1.0, 1.0]}
    ratio = report(Console(), "title", "texts", 8, seconds, ours="ours", peer="peer", extra={"bench": "x"})
    assert ratio.values == (2.0, 1.0, 4.0)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["ratio"], line["low"], line["high"], line["pairs"], line["bench"]) == (2.0, 1.0, 4.0, 3, "x")
    assert line["others"]["other"]["ratio"] == 1.0


def test_weights_are_counted_once_and_in_their_own_precision(bases: Callable[[str], Path]) -> None:
    model = tiny.build(bases("qwen3"))
    alone = memory.weight_bytes([model])
    assert alone == sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert memory.weight_bytes([model, model]) == alone
    assert memory.weight_bytes([model, tiny.build(bases("qwen3"))]) == 2 * alone


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-0.6B", 0.596), ("Qwen3-4B", 4.022), ("Mistral-7B", 7.248)])
def test_published_sizes_are_met(name: str, billions: float) -> None:
    size, extra = memory._arithmetic(memory.ARITHMETIC[name])
    assert size / 2e9 == pytest.approx(billions, rel=1e-3)
    assert 0.005 < extra / size < 0.06


def test_inference_keeps_outputs_and_gives_up_training(bases: Callable[[str], Path]) -> None:
    """One LoRA disappears into the weights; routed experts stay, and go on being routed."""
    batch = tiny.batch(tiny.ids([9, 4]))
    routed = {"rank": 4, "alpha": 8.0, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": "sparsegen"}}
    for adapter in ({"rank": 4, "alpha": 8.0}, routed):
        model = tiny.build(bases("qwen3"), noise=0.1, adapter=adapter)
        with torch.no_grad():
            before = model.embed(batch)
            assert tiny.relative(model.for_inference().embed(batch), before) < 1e-5
        held = [name for layer in model.adapters().values() for name in layer.ranks]
        assert bool(held) == ("router" in adapter)
        assert not any(p.requires_grad for layer in model.adapters().values() for p in layer.parameters())
    with pytest.raises(ValueError, match="cannot be merged"):
        next(iter(model.adapters().values())).merge()


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("run", [bench_encode, bench_encode_arms])
def test_encoding_benches_end_in_one_json_line(
    run: Callable[..., Ratio],
    one_by_one: bool,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On texts of the tiny data sets; the peer must have given the same vectors, or there would be no ratio."""
    texts = list(tiny.dataset("kitchen").queries.values())[:8]
    monkeypatch.setattr(encode, "_queries" if one_by_one else "_documents", lambda count: texts[:count])
    options = {"layers": 2, "rank": 4, "texts": 8, "pairs": 5, "one_by_one": one_by_one}
    ratio = run(Console(width=300), tiny.CPU, base=str(base), **options)
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert (line["ratio"], line["pairs"], line["texts"]) == (round(ratio.median, 3), 5, 8)
    assert ("latency" in line["bench"]) is one_by_one and ("one at a time" in out) is one_by_one


@pytest.mark.parametrize("run", [bench_train, bench_arms])
def test_training_benches_end_in_one_json_line(
    run: Callable[..., Ratio], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"layers": 2, "rows": 4, "length": 6, "rank": 4, "pairs": 5}
    ratio = run(Console(), tiny.CPU, base=str(base), **sizes)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["ratio"] == round(ratio.median, 3)
    assert line["low"] <= line["ratio"] <= line["high"]
    assert line["pairs"] == 5
    assert {key: line[key] for key in ("layers", "rows", "length", "rank")} == {
        k: sizes[k] for k in sizes if k != "pairs"
    }


def test_ranks_that_three_experts_cannot_share_are_refused(base: Path) -> None:
    with pytest.raises(UserError, match="--rank 6: three experts share it as 1:1:2, so with --arms it must be a mult"):
        bench_arms(Console(), tiny.CPU, base=str(base), layers=1, rows=4, length=4, rank=6, pairs=5)


@pytest.mark.parametrize("domain", ["hpo", "attack"])
@pytest.mark.assets
def test_reranking_compares_the_same_scores(domain: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench_rerank(
        Console(file=None, quiet=True), tiny.CPU,
        base="embedded:smollm2-135m", layers=2, rank=4, domain=domain, documents=6, pairs=1,
    )  # fmt: skip
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["documents"] == 6 and set(line["ratios"]) > {"query once, hard switch", "query once, routed causally"}


def test_scores_that_differ_are_nothing_to_compare() -> None:
    own = np.arange(8.0)
    rerank._agree(own, own + 0.01)
    with pytest.raises(RuntimeError, match="score differently"):
        rerank._agree(own, own[::-1])
