"""What each router does that the others do not; what all of them do is in `tests/contract/test_routers.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unimoer.config.router import (
    HardConfig,
    HardSharedConfig,
    HierarchicalConfig,
    RandomFrozenConfig,
    SimilarityConfig,
    SoftmaxConfig,
    SparsegenConfig,
    TopKConfig,
    TsallisConfig,
    UniformConfig,
)
from unimoer.model.routers import RouterFactory
from unimoer.model.routers.hierarchical import HierarchicalRouter, clamped_divergence
from unimoer.model.routers.softmax import TopKRouter, tsallis_entropy
from unimoer.model.routing import Routing, RoutingContext
from unimoer.types import Task

EXPERTS = ("embedding", "reranking", "shared")
QUIET: dict[str, Any] = {"noise_epsilon": 0.0, "granularity": "token"}


def make(config: Any, units: int = 3, layer: int = 0, layers: int = 3) -> Any:
    """Its input is as wide as its output, and its weights are the identity."""
    router = RouterFactory(config, layers)(EXPERTS[:units] if units < 4 else EXPERTS, units, units, layer).eval()
    with torch.no_grad():
        router.weight.copy_(torch.eye(units))
    return router


def decide(router: Any, *probabilities: list[float], task: Task = Task.EMBEDDING) -> Routing:
    """What it makes of logits whose softmax has these probabilities, for the tokens of one text."""
    logits = torch.tensor([probabilities]).log()
    weights, losses = router.weigh(logits, logits, RoutingContext(task, torch.ones(1, len(probabilities))))
    return Routing(EXPERTS, weights, losses=losses)


def test_top_k_scales_what_it_keeps_to_one() -> None:
    """By its probabilities, not by a softmax over them."""
    found = decide(make(TopKConfig(k=2, **QUIET)), [0.5, 0.2, 0.3], [0.1, 0.6, 0.3]).weights
    assert torch.allclose(found, torch.tensor([[[0.625, 0, 0.375], [0, 2 / 3, 1 / 3]]]))
    alone = decide(make(TopKConfig(k=1, **QUIET)), [0.5, 0.2, 0.3]).weights
    assert alone.tolist() == [[[1, 0, 0]]]


def test_the_bias_of_loss_free_balancing_is_seen_by_the_choice_alone() -> None:
    router = make(TopKConfig(k=2, **QUIET))
    router.bias.copy_(torch.tensor([0.0, 0.25, 0.0]))
    assert torch.allclose(decide(router, [0.5, 0.2, 0.3]).weights, torch.tensor([5 / 7, 2 / 7, 0.0]))


def test_the_bias_moves_by_its_rate_towards_the_mean_load() -> None:
    """Over all passes of a step, padding left out, and passes without gradients too: those come again."""
    router: TopKRouter = make(TopKConfig(k=1, bias_rate=0.1, **QUIET)).train()
    hidden = torch.tensor([[[5.0, 0, 0], [5.0, 0, 0], [0, 5.0, 0]], [[0, 5.0, 0], [0, 0, 9.0], [0, 0, 9.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    context = RoutingContext(Task.EMBEDDING, mask)
    router(hidden[:1], RoutingContext(Task.EMBEDDING, mask[:1]))
    router(hidden[1:], RoutingContext(Task.EMBEDDING, mask[1:]))
    assert router.load.tolist() == [2, 2, 0]
    with torch.no_grad():
        router(hidden, context)
    router.eval()(hidden, context)
    assert router.load.tolist() == [2, 2, 0]
    router.after_step()
    assert torch.allclose(router.bias, torch.tensor([-0.1, -0.1, 0.1]))
    assert not router.load.any()
    router.after_step()
    assert torch.allclose(router.bias, torch.tensor([-0.1, -0.1, 0.1]))


@pytest.mark.parametrize(
    ("probabilities", "entropy"),
    [([1 / 3] * 3, 1.000), ([0.5, 0.3, 0.2], 0.935), ([0.6, 0.3, 0.1], 0.812), ([0.8, 0.15, 0.05], 0.543)],
)
def test_tsallis_entropy_is_that_of_the_reference(probabilities: list[float], entropy: float) -> None:
    """Values of METHODS 2.3, at q = 1.1."""
    assert tsallis_entropy(torch.tensor(probabilities), 1.1).item() == pytest.approx(entropy, abs=1e-3)


def test_tsallis_entropy_is_shannons_in_the_limit_and_finite_at_the_corners() -> None:
    p = torch.tensor([0.7, 0.2, 0.1])
    shannon = -(p * p.log()).sum().item() / math.log(3)
    assert tsallis_entropy(p, 1.001).item() == pytest.approx(shannon, abs=1e-3)
    corner = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    found = tsallis_entropy(corner, 1.1)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(corner.grad).all()


def test_tsallis_keeps_all_where_it_is_uncertain_and_the_top_elsewhere() -> None:
    """The expert that crosses `top_p` is dropped, but for the first; what stays is not scaled up."""
    router = make(TsallisConfig(**QUIET))
    found = decide(router, [0.5, 0.3, 0.2], [0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.05, 0.4, 0.55]).weights[0]
    assert torch.allclose(found[0], torch.tensor([0.5, 0.3, 0.2]))
    assert torch.allclose(found[1], torch.tensor([0.8, 0, 0]))
    assert torch.allclose(found[2], torch.tensor([0, 0.7, 0]))
    # Entropy 0.75: 0.55 stays within 0.75, 0.95 does not.
    assert torch.allclose(found[3], torch.tensor([0, 0, 0.55]))
    two = make(TsallisConfig(keep_top_k=2, **QUIET))
    assert torch.allclose(decide(two, [0.8, 0.15, 0.05]).weights[0], torch.tensor([0.8, 0.15, 0]))
    entropies = tsallis_entropy(torch.tensor([[0.5, 0.3, 0.2], [0.8, 0.15, 0.05]]), 1.1)
    loss = decide(router, [0.5, 0.3, 0.2], [0.8, 0.15, 0.05]).losses["tsallis_entropy"]
    assert loss.item() == pytest.approx(0.01 * entropies.mean().item(), rel=1e-4)


def gates(**settings: Any) -> list[float]:
    """How much of the decision is the task's, from the first to the last of five layers."""
    found = []
    for layer in range(5):
        router: HierarchicalRouter = make(HierarchicalConfig(**QUIET, **settings), layer=layer, layers=5)
        with torch.no_grad():
            router.task_logits.copy_(torch.tensor([[50.0, 0, 0], [0, 50.0, 0]]))
        weights = {task: decide(router, [0.1, 0.1, 0.8], task=task).weights[0, 0] for task in Task}
        assert torch.allclose(weights[Task.EMBEDDING][[1, 0, 2]], weights[Task.RERANKING], atol=1e-6)
        found.append(1 - weights[Task.EMBEDDING][2].item() / 0.8)
    return found


def test_deep_layers_follow_the_task_and_shallow_ones_the_tokens() -> None:
    open_bounds = gates(gate_low=0.0, gate_high=1.0)
    expected = [1 / (1 + math.exp(-x)) for x in (-2, -1, 0, 1, 2)]
    assert open_bounds == pytest.approx(expected, abs=1e-5)
    assert gates() == pytest.approx([0, *expected[1:4], 1], abs=1e-5)


def test_a_single_layer_has_a_gate_too() -> None:
    router: HierarchicalRouter = make(HierarchicalConfig(), layers=1)
    assert math.isfinite(router.gate.item())


def divergence(*decisions: list[float], balance: float = 0.98, certainty: float = 0.5) -> float:
    return clamped_divergence(torch.tensor([decisions]), torch.ones(1, len(decisions)), balance, certainty).item()


def test_the_divergence_loss_is_zero_for_certain_balanced_decisions_and_for_no_others() -> None:
    certain = torch.eye(3).tolist()
    assert divergence(*certain) == pytest.approx(0, abs=1e-6)
    # All alike: nothing is known of the expert, whether each is sure or not.
    for alike in ([1 / 3] * 3, [1.0, 0.0, 0.0]):
        assert divergence(*[alike] * 3) == pytest.approx(0.5 if alike[0] < 1 else 0.98, abs=1e-5)
    # It asks for no more certainty than its goal.
    goal = math.log(3) * 0.5
    entropy = lambda p: -sum(x * math.log(x) for x in (p, (1 - p) / 2, (1 - p) / 2))  # noqa: E731
    p = next(x / 1000 for x in range(400, 1000) if entropy(x / 1000) < goal)
    rolled = [[p if row == place else (1 - p) / 2 for place in range(3)] for row in range(3)]
    assert divergence(*rolled) == pytest.approx(0, abs=1e-3)
    softer = [[0.6 if row == place else 0.2 for place in range(3)] for row in range(3)]
    expected = (0.48 * math.log(3) - (0.98 * math.log(3) - entropy(0.6))) / math.log(3)
    assert divergence(*softer) == pytest.approx(expected, rel=1e-4)


def test_task_routers_name_their_experts_and_weigh_none() -> None:
    hidden = torch.zeros(2, 3, 4)
    for config, extra in ((HardConfig(), ()), (HardSharedConfig(), ("shared",)), (SimilarityConfig(), ())):
        router = RouterFactory(config, 3)(EXPERTS, 3, 4, 0)
        for task in Task:
            decision = router(hidden, RoutingContext(task, torch.ones(2, 3)))
            assert decision == Routing((task.value, *extra))
    choice = RoutingContext(Task.EMBEDDING, torch.ones(2, 3), torch.tensor([2, 0]))
    assert router(hidden, choice).weights.tolist() == [[[0, 0, 1]], [[1, 0, 0]]]


def test_uniform_and_random_weights_learn_nothing() -> None:
    hidden, context = torch.randn(2, 3, 4), RoutingContext(Task.EMBEDDING, torch.ones(2, 3))
    uniform = RouterFactory(UniformConfig(), 1)(EXPERTS, 3, 4, 0)
    assert torch.equal(uniform(hidden, context).weights, torch.full((2, 1, 3), 1 / 3))
    random = RouterFactory(RandomFrozenConfig(), 1)(EXPERTS, 3, 4, 0)
    for router in (uniform, random):
        assert list(router.parameters()) == []
        assert not router.trainable
        assert not router.config.learned


@pytest.mark.parametrize("config", [SparsegenConfig(), SoftmaxConfig(), TopKConfig(k=1), UniformConfig()], ids=str)
def test_a_single_expert_needs_no_router(config: Any) -> None:
    router = RouterFactory(config, 3)(("shared",), 1, 4, 0)
    assert list(router.parameters()) == []
    found = router(torch.zeros(1, 2, 4), RoutingContext(Task.EMBEDDING, torch.ones(1, 2)))
    assert found == Routing(("shared",))


def test_the_network_for_lambda_is_shared_by_all_routers_of_one_width() -> None:
    factory = RouterFactory(SparsegenConfig(), 3)
    routers = [factory(EXPERTS, 3, width, layer) for layer in range(3) for width in (4, 6)]
    assert {id(router.network) for router in routers} == {id(routers[0].network), id(routers[1].network)}
    fixed: Tensor = RouterFactory(SparsegenConfig(sparsity=0.5), 1)(EXPERTS, 3, 4, 0)
    assert fixed.network is None
