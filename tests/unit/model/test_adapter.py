"""`MoELoRALinear`: layout of the stacked tensors, routing between experts, initial values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from unimoer.config import AdapterConfig
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.routing import Routing

RANKS = {"embedding": 2, "reranking": 3, "shared": 4}
PROJECTIONS = ("q", "k", "v")
SCALE = 6.0 / 4
"""Alpha over the rank of the configuration, whatever the ranks of the experts are."""


def build(
    linears: dict[str, nn.Linear],
    targets: tuple[str, ...] = PROJECTIONS,
    ranks: dict[str, int] | None = None,
    **settings: Any,
) -> MoELoRALinear:
    settings = {"rank": 4, "alpha": 6.0, "gain": 1.0} | settings
    return MoELoRALinear(linears, AdapterConfig(targets=targets, **settings), ranks or RANKS)


def make(targets: tuple[str, ...] = PROJECTIONS, ranks: dict[str, int] | None = None, **settings: Any) -> MoELoRALinear:
    torch.manual_seed(0)
    linears = {"q": nn.Linear(10, 8), "k": nn.Linear(10, 4, bias=False), "v": nn.Linear(10, 4)}
    module = build(linears, targets, ranks, **settings)
    tiny.stir(module, 0.5)
    return module


def weighed(module: MoELoRALinear, weights: Tensor | None) -> Routing | None:
    return None if weights is None else Routing(tuple(module.ranks), weights)


def by_hand(module: MoELoRALinear, x: Tensor, weights: Tensor | None) -> Tensor:
    """One projection and one expert after the other."""
    parts = []
    for name, size in zip(module.names, module.sizes, strict=True):
        rows = module.rows(name)
        assert rows.stop - rows.start == size
        y = x @ module.weight[rows].t() + module.bias[rows]
        for index, expert in enumerate(module.ranks):
            if name in module.targets:
                a, b, scale = module.lora(name, expert)
                assert a.shape == (module.ranks[expert], 10)
                assert b.shape == (size, module.ranks[expert])
                assert scale == pytest.approx(SCALE)
                weight = 1.0 if weights is None else weights[..., index : index + 1]
                y = y + weight * scale * (x @ a.t() @ b.t())
        parts.append(y)
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q", "v"), ("k",), ("v", "q")])
@pytest.mark.parametrize("shape", [None, (2, 5, 3), (2, 1, 3)], ids=["unrouted", "by token", "by text"])
def test_experts_add_up_as_the_formula_says(targets: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
    module = make(targets)
    x = torch.randn(2, 5, 10)
    weights = None if shape is None else torch.rand(shape).softmax(-1)
    assert tiny.relative(module(x, weighed(module, weights)), by_hand(module, x, weights)) < 1e-6


@pytest.mark.parametrize("length", [5, 1], ids=["by token", "by text"])
def test_gradients_reach_routing_weights_and_every_expert(length: int) -> None:
    module, x = make(("q", "v")), torch.randn(2, 5, 10)
    upstream = torch.randn(2, 5, 16)
    gradients = []
    for forward in (lambda x, weights: module(x, weighed(module, weights)), partial(by_hand, module)):
        weights = torch.full((2, length, 3), 0.4, requires_grad=True)
        wanted = [*module.a.values(), *module.b.values(), weights]
        assert len(wanted) == 7
        gradients.append(torch.autograd.grad((forward(x, weights) * upstream).sum(), wanted))
    for found, expected in zip(*gradients, strict=True):
        assert found.any()
        assert tiny.relative(found, expected) < 1e-6


def copy_expert(source: MoELoRALinear, expert: str, target: MoELoRALinear, name: str) -> None:
    with torch.no_grad():
        for projection in source.targets:
            pairs = zip(target.lora(projection, name)[:2], source.lora(projection, expert)[:2], strict=True)
            for to, of in pairs:
                to.copy_(of)


@pytest.mark.parametrize("way", ["weight 1", "named"])
def test_hard_routing_is_the_one_expert_alone(way: str) -> None:
    """And equal experts make the routing irrelevant, as long as its weights add up to one."""
    module, x = make(), torch.randn(3, 2, 10)
    only = Routing(tuple(RANKS), torch.tensor([0.0, 1.0, 0.0]).expand(3, 1, 3))
    routing = only if way == "weight 1" else Routing(("reranking",))
    alone = make(ranks={"reranking": 3})
    copy_expert(module, "reranking", alone, "reranking")
    assert tiny.relative(module(x, routing), alone(x)) < 1e-6

    equal = make(ranks={"one": 3, "two": 3})
    copy_expert(equal, "one", equal, "two")
    share = torch.rand(3, 2, 1)
    mixed = equal(x, weighed(equal, torch.cat([share, 1 - share], -1)))
    assert tiny.relative(mixed, equal(x, Routing(("one",)))) < 1e-6


def test_an_expert_that_is_not_named_gets_no_gradient_at_all() -> None:
    """Not a zero: an optimizer would still move it by momentum and weight decay."""
    module = make()
    module(torch.randn(3, 10), Routing(("embedding", "shared"))).sum().backward()
    for name in RANKS:
        for parameter in (module.a[name], module.b[name]):
            assert (parameter.grad is None) == (name == "reranking")


def test_a_name_that_the_layer_has_not_adds_nothing() -> None:
    """Its rank is 0 here."""
    module, x, residual = make(), torch.randn(3, 10), torch.randn(3, 16)
    assert torch.equal(module(x, Routing(("other", "shared"))), module(x, Routing(("shared",))))
    base = x @ module.weight.t() + module.bias
    assert torch.allclose(module(x, Routing(("other",)), residual), base + residual, atol=1e-6)
    assert torch.allclose(module(x, Routing(())), base, atol=1e-6)


@pytest.mark.parametrize("gain", [None, 2.5])
def test_weights_are_multiplied_by_the_gain(gain: float | None) -> None:
    """Without one, by the number of experts: equal weights are then the plain sum."""
    module, x = make(gain=gain), torch.randn(2, 5, 10)
    weights = torch.rand(2, 5, 3)
    expected = by_hand(module, x, (3 if gain is None else gain) * weights)
    assert tiny.relative(module(x, weighed(module, weights)), expected) < 1e-6
    if gain is None:
        assert tiny.relative(module(x, weighed(module, torch.full((2, 1, 3), 1 / 3))), module(x)) < 1e-6


def test_rank_wise_weights_are_one_a_rank_of_every_projection() -> None:
    router = {"type": "softmax"}
    module = make(ranks={"shared": 4}, experts={"shared": 4}, rank_wise=True, router=router)
    x, weights = torch.randn(2, 5, 10), torch.rand(2, 5, 4)
    y = x @ module.weight.t() + module.bias
    for name in PROJECTIONS:
        a, b, scale = module.lora(name, "shared")
        for rank in range(4):
            y[..., module.rows(name)] += weights[..., rank, None] * scale * (x @ a[rank])[..., None] * b[:, rank]
    assert tiny.relative(module(x, weighed(module, weights)), y) < 1e-6


def test_initial_values_are_those_of_lora() -> None:
    torch.manual_seed(1)
    module = build({"q": nn.Linear(400, 8)}, ("q",), {"shared": 64}, rank=64)
    a, b = module.a["shared"].detach(), module.b["shared"].detach()
    bound = 1 / math.sqrt(400)
    assert a.abs().max() <= bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not b.any()
    assert (a.dtype, b.dtype) == (torch.float32, torch.float32)


def test_only_a_and_b_are_trained_and_the_base_keeps_its_precision() -> None:
    module = build({"q": nn.Linear(10, 8).to(torch.bfloat16)}, ("q",), {"shared": 2})
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert list(trained) == ["a.shared", "b.shared"]
    assert module.weight.dtype == torch.bfloat16
    module(torch.randn(3, 10, dtype=torch.bfloat16)).sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in trained.values())


def test_without_a_target_it_is_a_plain_projection() -> None:
    module = make(targets=("gate_proj",))
    x, residual = torch.randn(3, 10), torch.randn(3, 16)
    assert list(dict(module.named_parameters())) == ["weight", "bias"]
    assert torch.allclose(module(x, residual=residual), by_hand(module, x, None) + residual)
    with pytest.raises(KeyError, match="adapted"):
        module.lora("q", "shared")


def test_dropout_acts_on_the_low_rank_path_of_training_only() -> None:
    linear = nn.Linear(64, 8)
    module = build({"q": linear}, ("q",), {"shared": 4}, dropout=0.5)
    x = torch.randn(2, 64)
    # B is zero: the update vanishes whatever is dropped, so the base sees the whole input.
    assert torch.allclose(module.train()(x), linear(x), atol=1e-6)
    tiny.stir(module, 0.5)
    torch.manual_seed(0)
    one, other = module(x), module(x)
    assert not torch.allclose(one, other)
    torch.manual_seed(0)
    assert torch.equal(module(x), one)
    assert torch.equal(module.eval()(x), module(x))
    kept = torch.stack([module.train()(x) for _ in range(600)]).mean(0)
    assert tiny.relative(kept, module.eval()(x)) < 0.1


@pytest.mark.parametrize("routed", [False, True])
def test_a_removed_expert_is_gone_and_the_others_stay(routed: bool) -> None:
    module, x = make(), torch.randn(2, 5, 10)
    weights = torch.rand(2, 5, 3) if routed else None
    before = module(x, weighed(module, weights))
    alone = module(x, Routing(("reranking",), None if weights is None else weights[..., 1:2]))
    base = module(x, Routing(()))
    module.remove("reranking")
    assert module.ranks == {"embedding": 2, "shared": 4}
    left = None if weights is None else weights[..., [0, 2]]
    assert tiny.relative(module(x, weighed(module, left)), before - (alone - base)) < 1e-6
    assert not any("reranking" in name for name in module.state_dict())


def test_ranks_that_are_not_active_neither_add_nor_learn() -> None:
    module, x = make(), torch.randn(2, 5, 10)
    cut = make()
    with torch.no_grad():
        cut.b["shared"][:, 3:] = 0
    module.set_active("shared", 3)
    assert tiny.relative(module(x), cut(x)) < 1e-6
    weights = torch.full((2, 1, 3), 0.4, requires_grad=True)
    module(x, weighed(module, weights)).square().sum().backward()
    inactive = [place * 4 + 3 for place in range(3)]
    assert not module.a["shared"].grad[inactive].any()
    assert not module.b["shared"].grad[:, 3].any()
    assert module.a["shared"].grad[[0, 1, 2]].all()
    assert module.b["shared"].grad[:, :3].any()
    module.set_active("shared", 4)
    assert torch.equal(module(x), make()(x))
    with pytest.raises(ValueError, match="'shared' has 4 ranks, not 5"):
        module.set_active("shared", 5)
