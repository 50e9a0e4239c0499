"""Sparsegen against a solver that knows nothing of its closed form, and what follows from the closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unimoer.config import SparsegenConfig
from unimoer.losses.balance import load_balance, mean_weights, z_loss
from unimoer.model.routers import RouterFactory
from unimoer.model.routers.sparsegen import SparsityNetwork, sparsegen, sparsity_bound
from unimoer.model.routing import RoutingContext
from unimoer.types import Task

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
EXPERTS = 8


def cases(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """2,000 rows of logits and a lambda for each: all sizes, ties, equal numbers, one expert far ahead."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** torch.empty(2000, 1, dtype=torch.float64).uniform_(-3, 4, generator=generator)
    logits = torch.randn(2000, EXPERTS, generator=generator, dtype=torch.float64) * size
    logits[:200, 1:4] = logits[:200, :1]
    logits[200:300] = logits[200:300, :1]
    logits[300:400] = logits[300:400].round()
    logits[400:500, 2] += 1e4
    logits[500:600] = torch.where(torch.rand(100, EXPERTS, generator=generator) < 0.5, 1e4, -1e4).double()
    sparsity = torch.empty(2000, 1, dtype=torch.float64).uniform_(-5, 0.99, generator=generator)
    sparsity[::7], sparsity[1::7] = 0.99, -5.0
    return logits.to(dtype), sparsity.to(dtype)


def by_bisection(logits: Tensor, sparsity: Tensor) -> Tensor:
    """`p_i = max(0, (u_i - tau) / (1 - lambda))` with the tau at which they sum to 1."""
    u, width = logits.double(), 1 - sparsity.double()
    u = u - u.max(-1, keepdim=True).values
    low, high = -width.clamp(min=1) * 2 - 1, torch.zeros_like(width)
    for _ in range(200):
        middle = (low + high) / 2
        enough = ((u - middle) / width).clamp(min=0).sum(-1, keepdim=True) >= 1
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return ((u - low) / width).clamp(min=0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_it_is_the_solution(dtype: torch.dtype) -> None:
    logits, sparsity = cases(dtype)
    found, expected = sparsegen(logits, sparsity), by_bisection(logits, sparsity)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < TOLERANCE[dtype]
    assert (found.sum(-1) - 1).abs().max() < TOLERANCE[dtype]
    assert found.min() >= 0
    # The cases are what they say: dense rows, sparse rows, single experts, and exact ties among those in use.
    sizes = (found > 0).sum(-1)
    assert {1, 2, EXPERTS} <= set(sizes.tolist())
    assert torch.equal(found[:200, 1:4], found[:200, :1].expand(-1, 3))
    assert torch.allclose(found[200:300], torch.full((100, EXPERTS), 1 / EXPERTS, dtype=dtype))


def test_lambda_is_an_inverse_temperature_before_sparsemax() -> None:
    logits, sparsity = cases(torch.float64)
    assert torch.allclose(sparsegen(logits, sparsity), sparsegen(logits / (1 - sparsity), 0.0), rtol=0, atol=1e-9)
    assert torch.equal(sparsegen(logits, 0.3), sparsegen(logits, torch.full((2000, 1), 0.3, dtype=torch.float64)))


def test_gradients_are_those_of_the_closed_form() -> None:
    """On the support, `(delta_ij - 1/k) / (1 - lambda)` and `(u_i - mean u) / (1 - lambda)^2`; none elsewhere."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(300, EXPERTS, generator=generator, dtype=torch.float64)
    sparsity = torch.empty(300, 1, dtype=torch.float64).uniform_(-3, 0.9, generator=generator)
    upstream = torch.randn(300, EXPERTS, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    sparsity.requires_grad_()
    found = sparsegen(logits, sparsity)
    by_logits, by_sparsity = torch.autograd.grad((found * upstream).sum(), [logits, sparsity])
    support = (found.detach() > 0).double()
    k, width = support.sum(-1, keepdim=True), 1 - sparsity.detach()
    mean = (support * upstream).sum(-1, keepdim=True) / k
    assert torch.allclose(by_logits, support * (upstream - mean) / width, atol=1e-12)
    centred = support * (logits.detach() - (support * logits.detach()).sum(-1, keepdim=True) / k)
    expected = (centred * upstream).sum(-1, keepdim=True) / width**2
    assert torch.allclose(by_sparsity, expected, rtol=1e-9, atol=1e-9)
    assert len(set(k.flatten().tolist())) > 4
    assert torch.autograd.gradcheck(sparsegen, (logits[:20], sparsity[:20]))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_bound_is_where_the_number_of_experts_changes(k: int) -> None:
    """At most k experts are active if, and only if, lambda reaches the bound."""
    logits = torch.randn(2000, EXPERTS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bound = sparsity_bound(logits, k)
    assert bound.shape == (2000, 1)
    rows = bound.squeeze(-1) < 0.99
    above, below = bound + 1e-6, bound - 1e-6
    assert torch.all((sparsegen(logits, above) > 0).sum(-1)[rows] <= k)
    assert torch.all((sparsegen(logits, below) > 0).sum(-1) > k)
    assert rows.sum() > 1500


def router(**settings: float) -> tuple[torch.nn.Module, Tensor, RoutingContext]:
    """One expert far ahead in every text."""
    torch.manual_seed(0)
    made = RouterFactory(SparsegenConfig(noise_epsilon=0.0, **settings), 1)(("a", "b", "c"), 3, 4, 0).train()
    with torch.no_grad():
        made.weight.zero_()
        made.weight[1] = 10.0
    hidden = torch.rand(2, 5, 4) + 0.5
    return made, hidden, RoutingContext(Task.EMBEDDING, torch.ones(2, 5, dtype=torch.long))


def test_a_single_expert_absorbs() -> None:
    """Neither the other experts nor the router get a gradient, from the task or from the balance of the load."""
    made, hidden, context = router(weight_floor=0.0)
    decision = made(hidden, context)
    assert torch.equal(decision.weights, torch.tensor([0.0, 1.0, 0.0]).expand(2, 1, 3))
    balance = load_balance(mean_weights(decision.weights, context.mask))
    ((decision.weights * torch.randn(2, 1, 3)).sum() + balance).backward()
    assert all(not parameter.grad.any() for parameter in made.parameters())


def test_the_floor_lets_the_other_experts_learn_and_the_z_loss_the_router() -> None:
    """An expert's gradient is in proportion to its weight. The floor is a constant: it gives the router none."""
    made, hidden, context = router(weight_floor=0.06)
    decision = made(hidden, context)
    assert torch.allclose(decision.weights, torch.tensor([0.02, 0.96, 0.02]).expand(2, 1, 3))
    assert torch.equal(decision.clean, torch.tensor([0.0, 1.0, 0.0]).expand(2, 1, 3))
    (decision.weights * torch.randn(2, 1, 3)).sum().backward()
    assert not made.weight.grad.any()
    z_loss(made(hidden, context).logits, context.mask).backward()
    # Downhill is a smaller logit of the expert that is ahead.
    assert torch.all(made.weight.grad[1] > 0)


def test_the_sparsity_loss_asks_for_the_bound_and_no_more() -> None:
    made, hidden, context = router(sparsity_loss_weight=0.5, max_active=2)
    with torch.no_grad():
        made.weight.zero_()
    logits = torch.zeros(2, 1, 3)
    # Equal logits: lambda would have to be 1 for fewer than all, and is near -1.6.
    loss = made(hidden, context).losses["sparsity"]
    unit = hidden * hidden.square().mean(-1, keepdim=True).rsqrt()
    sparsity = made.network(made.project(unit.mean(1, keepdim=True), made.network.first, context))
    expected = 0.5 * (sparsity_bound(logits, 2) - sparsity).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    # It moves lambda, not the logits.
    assert made.weight.grad is None or not made.weight.grad.any()
    assert made.network.second_bias.grad < 0
    with torch.no_grad():
        made.weight[1] = 10.0
    assert made(hidden, context).losses["sparsity"].item() == 0


def test_padding_does_not_dilute_the_sparsity_loss() -> None:
    torch.manual_seed(0)
    config = SparsegenConfig(granularity="token", sparsity_loss_weight=0.5, max_active=1)
    made = RouterFactory(config, 1)(("a", "b", "c"), 3, 4, 0).eval()
    hidden, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    expected = torch.cat([hidden[0, :3], hidden[1, :1]]).unsqueeze(0)
    alone = RoutingContext(Task.EMBEDDING, torch.ones(1, 4, dtype=torch.long))
    found = made(hidden, RoutingContext(Task.EMBEDDING, mask)).losses["sparsity"]
    assert found.item() > 0
    assert found.item() == pytest.approx(made(expected, alone).losses["sparsity"].item(), rel=1e-5)


def test_lambda_starts_dense_stays_below_one_and_depends_on_the_text() -> None:
    """On inputs of unit length, as readings are; every tensor of the network learns from the first step on."""
    torch.manual_seed(0)
    network = SparsityNetwork(64, 16)
    x = torch.randn(500, 64) / 8
    found = network(x @ network.first.t())
    assert found.mean().item() == pytest.approx(-1.6, abs=0.3)
    assert found.std().item() > 0.05
    found.sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    with torch.no_grad():
        network.second_bias.fill_(1e4)
    assert network(x @ network.first.t()).max().item() < 1
