"""A model made ready to serve gives the outputs of the model that was trained, for every kind of experts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.evaluation.serving import weight_bytes
from unimoer.model import blocked
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.blocked import supported
from unimoer.model.experts import grow_expert, remove_expert
from unimoer.model.inference import identify
from unimoer.model.routing import Routing
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

THREE = {"embedding": 2, "reranking": 1, "shared": 3}
TWO = {"embedding": 2, "reranking": 4}
ARMS: dict[str, dict[str, Any]] = {
    "one_lora": {},
    "sequence": {"experts": THREE, "router": {"type": "sparsegen"}},
    "token": {"experts": THREE, "router": {"type": "softmax", "granularity": "token"}},
    "by_projection": {"experts": THREE, "router": {"type": "softmax", "scope": "projection"}},
    "topk": {"experts": THREE, "router": {"type": "topk", "k": 1}},
    "hard": {"experts": TWO, "router": {"type": "hard"}},
    "hard_shared": {"experts": THREE, "router": {"type": "hard_shared"}},
    "uniform": {"experts": THREE, "router": {"type": "uniform"}},
    "rank_wise": {"experts": {"shared": 6}, "router": {"type": "topk", "k": 2}, "rank_wise": True},
    "by_layer": {"experts": {"embedding": [2, 0, 1], "reranking": [1, 2, 2]}, "router": {"type": "softmax"}},
    "some_targets": {"experts": TWO, "router": {"type": "softmax"}, "targets": ["v_proj", "gate_proj", "down_proj"]},
}
Bases = Callable[[str], Path]


def outputs(model: UnifiedModel) -> list[Tensor]:
    batch = tiny.batch(tiny.ids([9, 4, 1]))
    with torch.inference_mode():
        return [model.embed(batch), model.score(batch)]


def experts_of(model: UnifiedModel) -> list[MoELoRALinear]:
    return list(model.adapters().values())


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("arm", ARMS)
def test_served_is_as_trained(arm: str, family: str, bases: Bases) -> None:
    """Llama's projections have biases. Float32, so only the order of sums differs."""
    model = tiny.build(bases(family), adapter={"rank": 6, "alpha": 8.0, **ARMS[arm]}, noise=0.2)
    before, bare = outputs(model), outputs(tiny.build(bases(family)))
    after = outputs(model.for_inference())
    for task, found, expected, base in zip(Task, after, before, bare, strict=True):
        assert tiny.relative(found, expected) < 1e-5, task
        assert tiny.relative(found, base) > 1e-3, "or there would be nothing to compare"


@pytest.mark.parametrize("arm", ARMS)
def test_nothing_is_stored_twice(base: Path, arm: str) -> None:
    model = tiny.build(base, adapter={"rank": 6, **ARMS[arm]}, noise=0.1, dtype="bfloat16")
    plain = tiny.build(base, adapter={"rank": 6, "targets": ["q_proj"]}, dtype="bfloat16")
    routers = [router for name, router in model.named_modules() if name.endswith("routers")]
    factors = [factor for adapter in experts_of(model) for factor in (*adapter.a.values(), *adapter.b.values())]
    extra = sum(map(torch.numel, factors)) * 2 if model.config.adapter.is_routed else 0
    expected = weight_bytes([plain.for_inference()]) + weight_bytes(routers) + extra
    assert weight_bytes([model.for_inference()]) == expected
    assert not any(parameter.requires_grad for adapter in experts_of(model) for parameter in adapter.parameters())


@pytest.mark.skipif(not supported(), reason="oneDNN has no layout of its own here")
@pytest.mark.parametrize(
    ("arm", "family"), [*((arm, family) for arm in ARMS for family in ("qwen3", "llama")), ("one_lora", "olmo2")]
)
def test_the_layout_of_products_changes_nothing(
    arm: str, family: str, bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> UnifiedModel:
        adapter = {"rank": 6, "alpha": 8.0, **ARMS[arm]}
        return tiny.build(bases(family), adapter=adapter, noise=0.2, dtype="bfloat16").for_inference()

    laid_out = build()
    assert all(adapter.weight.is_mkldnn for adapter in experts_of(laid_out))
    with monkeypatch.context() as patch:
        patch.setattr(blocked, "supported", lambda: False)
        plain = build()
    assert not any(adapter.weight.is_mkldnn for adapter in experts_of(plain))
    for tolerance, found, expected in zip((0.02, 0.1), outputs(laid_out), outputs(plain), strict=True):
        assert tiny.relative(found, expected) < tolerance
    assert identify(laid_out) == identify(laid_out)
    # Whoever looks at the weights finds them.
    for one, other in zip(experts_of(laid_out), experts_of(plain), strict=True):
        for expert in one.active:
            for name in one.targets:
                for part, same in zip(one.lora(name, expert)[:2], other.lora(name, expert)[:2], strict=True):
                    assert torch.equal(part, same)
        assert torch.equal(one.weight.to_dense(), other.weight)
    for tolerance, found, expected in zip((0.02, 0.1), outputs(laid_out), outputs(plain), strict=True):
        assert tiny.relative(found, expected) < tolerance


@pytest.mark.parametrize("arm", ["hard", "hard_shared"])
def test_where_the_task_decides_embedding_is_merged(base: Path, arm: str) -> None:
    """It costs no product more than one LoRA; the other task takes it back and adds its own."""
    model = tiny.build(base, adapter={"rank": 6, **ARMS[arm]}, noise=0.2)
    plain = experts_of(tiny.build(base))[0].weight
    module = experts_of(model.for_inference())[0]
    assert not torch.equal(module.weight, plain)
    x = torch.randn(1, 3, module.weight.shape[1])
    expected = torch.nn.functional.linear(x, module.weight, module.bias)
    names = ("embedding",) if arm == "hard" else ("embedding", "shared")
    assert torch.equal(module(x, Routing(names)), expected)
    for others in (("reranking",), ("reranking", "shared"), ()):
        found = [module.lora("q_proj", name) for name in others if name in module.ranks]
        there = sum((b @ a * scale for a, b, scale in found), torch.zeros(1))
        rows = module.rows("q_proj")
        bias = 0 if module.bias is None else module.bias[rows]
        wanted = x @ (plain[rows] + there).t() + bias
        assert tiny.relative(module(x, Routing(others))[..., rows], wanted) < 1e-5
    with pytest.raises(ValueError, match="merged for inference"):
        module.remove("embedding")


def test_a_rank_that_is_not_active_stays_out(base: Path) -> None:
    model = tiny.build(base, adapter={"rank": 6, **ARMS["sequence"]}, noise=0.2)
    grow_expert(model, "shared", 1)
    before, full = outputs(model), outputs(tiny.build(base, adapter={"rank": 6, **ARMS["sequence"]}, noise=0.2))
    assert tiny.relative(before[0], full[0]) > 1e-3
    after = outputs(model.for_inference())
    assert all(tiny.relative(found, expected) < 1e-5 for found, expected in zip(after, before, strict=True))
    with pytest.raises(ValueError, match="stacked for inference; the number of their ranks can no longer change"):
        experts_of(model)[0].set_active("shared", 3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_an_expert_can_be_removed_before_or_after(base: Path, dtype: str, tolerance: float) -> None:
    first = tiny.build(base, adapter={"rank": 6, **ARMS["sequence"]}, noise=0.2, dtype=dtype)
    second = copy.deepcopy(first)
    remove_expert(first, "reranking")
    remove_expert(second.for_inference(), "reranking")
    for found, expected in zip(outputs(second), outputs(first.for_inference()), strict=True):
        assert tiny.relative(found, expected) < tolerance


def test_updates_can_still_be_read(base: Path) -> None:
    """Of one projection and expert, as `lora` promises."""
    model = tiny.build(base, adapter={"rank": 6, "alpha": 8.0, **ARMS["hard"]}, noise=0.2)
    module = experts_of(model)[0]
    before = {(name, expert): module.lora(name, expert) for name in module.targets for expert in module.ranks}
    kept = {key: (b @ a * scale).clone() for key, (a, b, scale) in before.items()}
    model.for_inference()
    for key, expected in kept.items():
        a, b, scale = module.lora(*key)
        assert torch.allclose(b @ a * scale, expected, atol=1e-6)
