"""`MoELoRALinear`: layout of the stacked tensors, routing between experts, initial values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import tiny
from unimoer.model.adapter import MoELoRALinear

RANKS = {"embedding": 2, "reranking": 3, "shared": 4}


def make(targets: tuple[str, ...] = ("q", "k", "v"), ranks: dict[str, int] | None = None) -> MoELoRALinear:
    torch.manual_seed(0)
    linears = {"q": nn.Linear(10, 8), "k": nn.Linear(10, 4, bias=False), "v": nn.Linear(10, 4)}
    module = MoELoRALinear(linears, targets=targets, ranks=ranks or RANKS, alpha=6.0)
    tiny.stir(module, 0.5)
    return module


def by_hand(module: MoELoRALinear, x: Tensor, routing: Tensor | None) -> Tensor:
    """One projection and one expert after the other."""
    parts = []
    for name, size in zip(module.names, module.sizes, strict=True):
        rows = module.rows(name)
        assert rows.stop - rows.start == size
        y = x @ module.weight[rows].t() + module.bias[rows]
        for index, expert in enumerate(module.ranks):
            if name in module.targets:
                a, b, scale = module.lora(name, expert)
                assert scale == pytest.approx(6.0 / module.ranks[expert])
                weight = 1.0 if routing is None else routing[..., index : index + 1]
                y = y + weight * scale * (x @ a.t() @ b.t())
        parts.append(y)
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("targets", [("q", "k", "v"), ("q", "v"), ("k",), ("v", "q")])
@pytest.mark.parametrize("routed", [False, True])
def test_experts_add_up_as_the_formula_says(targets: tuple[str, ...], routed: bool) -> None:
    module = make(targets)
    x = torch.randn(2, 5, 10)
    routing = torch.rand(2, 5, 3).softmax(-1) if routed else None
    assert tiny.relative(module(x, routing), by_hand(module, x, routing)) < 1e-6


def test_gradients_reach_routing_weights_and_every_expert() -> None:
    module, x = make(("q", "v")), torch.randn(2, 5, 10)
    weights = torch.randn(2, 5, 16)
    gradients = []
    for forward in (module, lambda x, routing: by_hand(module, x, routing)):
        routing = torch.full((2, 5, 3), 0.4, requires_grad=True)
        wanted = [module.a, module.b, routing]
        gradients.append(torch.autograd.grad((forward(x, routing) * weights).sum(), wanted))
    for found, expected in zip(*gradients, strict=True):
        assert tiny.relative(found, expected) < 1e-6


def test_hard_routing_is_the_one_expert_alone() -> None:
    """And equal experts make the routing irrelevant, as long as its weights add up to one."""
    module, x = make(), torch.randn(3, 10)
    only = torch.tensor([0.0, 1.0, 0.0]).expand(3, 3)
    alone = MoELoRALinear(
        {name: nn.Linear(10, size) for name, size in zip("qkv", (8, 4, 4), strict=True)},
        targets=("q", "k", "v"),
        ranks={"reranking": 3},
        alpha=6.0,
    )
    with torch.no_grad():
        alone.weight.copy_(module.weight)
        alone.bias.copy_(module.bias)
        for name in ("q", "k", "v"):
            for target, source in zip(alone.lora(name, "reranking")[:2], module.lora(name, "reranking"), strict=False):
                target.copy_(source)
    assert tiny.relative(module(x, only), alone(x)) < 1e-6

    equal = make(ranks={"one": 3, "two": 3})
    with torch.no_grad():
        for name in ("q", "k", "v"):
            for target, source in zip(equal.lora(name, "two")[:2], equal.lora(name, "one"), strict=False):
                target.copy_(source)
    share = torch.rand(3, 1)
    mixed = equal(x, torch.cat([share, 1 - share], 1))
    assert tiny.relative(mixed, equal(x, torch.tensor([1.0, 0.0]).expand(3, 2))) < 1e-6


def test_initial_values_are_those_of_lora() -> None:
    torch.manual_seed(1)
    module = MoELoRALinear({"q": nn.Linear(400, 8)}, targets=("q",), ranks={"shared": 64}, alpha=128.0)
    bound = 1 / math.sqrt(400)
    assert module.a.abs().max() <= bound
    assert float(module.a.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not module.b.any()
    assert (module.a.dtype, module.b.dtype) == (torch.float32, torch.float32)


def test_only_a_and_b_are_trained_and_the_base_keeps_its_precision() -> None:
    linear = nn.Linear(10, 8).to(torch.bfloat16)
    module = MoELoRALinear({"q": linear}, targets=("q",), ranks={"shared": 2}, alpha=2.0)
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == ["a", "b"]
    assert module.weight.dtype == torch.bfloat16
    module(torch.randn(3, 10, dtype=torch.bfloat16)).sum().backward()
    assert module.a.grad.dtype == module.b.grad.dtype == torch.float32


def test_without_a_target_it_is_a_plain_projection() -> None:
    module = make(targets=("gate_proj",))
    x, residual = torch.randn(3, 10), torch.randn(3, 16)
    assert list(dict(module.named_parameters())) == ["weight", "bias"]
    assert torch.allclose(module(x, residual=residual), by_hand(module, x, None) + residual)
    with pytest.raises(KeyError, match="adapted"):
        module.lora("q", "shared")


def test_dropout_acts_on_the_low_rank_path_of_training_only() -> None:
    linear = nn.Linear(64, 8)
    module = MoELoRALinear({"q": linear}, targets=("q",), ranks={"shared": 4}, alpha=4.0, dropout=0.5)
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
