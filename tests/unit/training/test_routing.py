"""Losses over both tasks' decisions, and the monitor that sees experts collapse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.config import SparsegenConfig
from unimoer.config.router import HardConfig, HierarchicalConfig, SoftmaxConfig
from unimoer.model.routers import RouterFactory
from unimoer.model.routing import Routing, RoutingContext, RoutingTrace
from unimoer.tracking import JsonlWriter
from unimoer.training.routing import RoutingLosses, RoutingMonitor, measure
from unimoer.types import Task

E, R = Task.EMBEDDING, Task.RERANKING
EXPERTS = ("embedding", "reranking", "shared")
ONLY_BALANCE = SoftmaxConfig(aux_loss_weight=0.1, z_loss_weight=0.0)


def trace(task: Task, *logits: list[float] | Tensor, mask: Tensor | None = None, **fields: Any) -> RoutingTrace:
    """One forward pass of softmax routers `0`, `1`...: each with logits for all of its texts."""
    made = RoutingTrace()
    for name, given in enumerate(logits):
        values = torch.tensor([[given]]) if isinstance(given, list) else given
        weights = values.softmax(-1)
        made.decisions[str(name)] = Routing(EXPERTS[: values.shape[-1]], weights, weights, values, **fields)
        made.context = RoutingContext(task, torch.ones(len(values), 4) if mask is None else mask)
    return made


def prefer(expert: int, strength: float = 20.0) -> list[float]:
    return [strength * (place == expert) for place in range(3)]


def spread(logits: Tensor) -> Tensor:
    return logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])


def test_there_is_no_balance_before_both_tasks_were_seen() -> None:
    losses = RoutingLosses(ONLY_BALANCE)
    collapsed = [trace(E, prefer(0))]
    assert losses(E, collapsed) == (None, {})
    losses.remember(E, collapsed)
    # Its own past is no other task.
    assert losses(E, collapsed) == (None, {})
    loss, log = losses(R, [trace(R, prefer(0))])
    assert log == {"load_balance": pytest.approx(3)}
    assert loss.item() == pytest.approx(0.3)


def test_a_task_of_its_own_expert_is_in_balance() -> None:
    """Balancing a batch by itself would push each task to all experts, against what routing is for."""
    config = SoftmaxConfig(aux_loss_weight=1.0, z_loss_weight=0.0)
    losses = RoutingLosses(config)
    losses.remember(E, [trace(E, prefer(0))])
    apart = losses(R, [trace(R, prefer(1))])[0]
    together = losses(R, [trace(R, prefer(0))])[0]
    # Two of three experts: 3 (1/4 + 1/4).
    assert apart.item() == pytest.approx(1.5)
    assert together.item() == pytest.approx(3)


def test_downhill_leads_away_from_the_expert_that_the_other_task_uses() -> None:
    losses = RoutingLosses(ONLY_BALANCE)
    losses.remember(E, [trace(E, prefer(0))])
    logits = torch.tensor([[[0.1, 0.0, -0.1]]], requires_grad=True)
    losses(R, [trace(R, logits)])[0].backward()
    slope = logits.grad[0, 0]
    assert slope[0] > 0
    assert torch.all(slope[1:] < 0)
    # A lone batch of this task leans to its own third expert, and is not pushed from it: nobody else is there.
    logits = torch.tensor([[[-0.1, 0.0, 0.1]]], requires_grad=True)
    losses(R, [trace(R, logits)])[0].backward()
    assert logits.grad[0, 0, 0] > 0


def test_the_other_task_carries_no_gradient() -> None:
    losses = RoutingLosses(ONLY_BALANCE)
    other = torch.zeros(1, 1, 3, requires_grad=True)
    losses.remember(E, [trace(E, other)])
    losses(R, [trace(R, torch.randn(1, 1, 3, requires_grad=True))])[0].backward()
    assert other.grad is None


def test_terms_are_means_over_routers_and_passes_and_weighted() -> None:
    """A pass counts in the balance by its texts; a router's own losses come weighted as they are."""
    config = HierarchicalConfig(aux_loss_weight=0.5, z_loss_weight=0.2)
    losses = RoutingLosses(config)
    first = [torch.randn(1, 1, 3), torch.randn(1, 1, 3)]
    second = [torch.randn(3, 1, 3), torch.randn(3, 1, 3)]
    own = {"losses": {"divergence": torch.tensor(0.7)}}
    traces = [trace(E, *first, **own), trace(E, *second, **own)]
    losses.remember(R, [trace(R, prefer(2), prefer(2))])
    total, log = losses(E, traces)

    balances, zs = [], []
    for one, three in zip(first, second, strict=True):
        together = torch.cat([one, three]).flatten(0, 1)
        other = torch.tensor(prefer(2)).softmax(-1)
        mean = (together.softmax(-1).mean(0) + other) / 2
        balances.append(3 * float(mean.square().sum()))
        zs.append(sum(float(spread(part).square().mean()) for part in (one, three)) / 2)
    assert log["load_balance"] == pytest.approx(sum(balances) / 2, rel=1e-5)
    assert log["router_z"] == pytest.approx(sum(zs) / 2, rel=1e-5)
    assert log["divergence"] == pytest.approx(0.7)
    expected = 0.5 * log["load_balance"] + 0.2 * log["router_z"] + 0.7
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_count() -> None:
    logits = torch.randn(2, 4, 3)
    dirty = logits.clone()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    dirty[mask == 0] = torch.tensor([30.0, 0, -30])
    found = []
    for values in (logits, dirty):
        losses = RoutingLosses(SoftmaxConfig())
        losses.remember(E, [trace(E, values, mask=mask)])
        total, log = losses(R, [trace(R, values, mask=mask)])
        found.append((total.item(), log))
        assert set(log) == {"load_balance", "router_z"}
    assert found[0] == found[1]


@pytest.mark.parametrize("config", [None, HardConfig()])
def test_without_a_learned_router_there_is_nothing_to_pay(config: Any) -> None:
    made = RoutingTrace(RoutingContext(E, torch.ones(1, 4)), {"0": Routing(("embedding",))})
    losses = RoutingLosses(config)
    losses.remember(R, [made])
    assert losses(E, [made]) == (None, {})
    assert losses(E, [RoutingTrace()]) == (None, {})
    assert losses(E, []) == (None, {})
    assert losses.state_dict() == {}


def test_a_layer_with_a_single_expert_is_left_out() -> None:
    """Where ranks of 0 leave one, there is no router; the others are balanced as ever."""
    losses = RoutingLosses(ONLY_BALANCE)
    passes = {}
    for task in Task:
        passes[task] = trace(task, prefer(0))
        passes[task].decisions["1"] = Routing(("shared",))
    losses.remember(E, [passes[E]])
    assert losses(R, [passes[R]])[1]["load_balance"] == pytest.approx(1.5)


def test_a_resumed_run_balances_against_what_the_interrupted_one_had_seen() -> None:
    losses, resumed = RoutingLosses(ONLY_BALANCE), RoutingLosses(ONLY_BALANCE)
    for task in Task:
        losses.remember(task, [trace(task, torch.randn(5, 1, 3), torch.randn(5, 4, 3))])
    resumed.load_state_dict({name: tensor.clone() for name, tensor in losses.state_dict().items()})
    assert resumed.state_dict().keys() == losses.state_dict().keys()
    assert len(losses.state_dict()) == 2 * 2
    now = [trace(R, torch.randn(5, 1, 3), torch.randn(5, 4, 3))]
    found, expected = resumed(R, now), losses(R, now)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "routing.jsonl"


def monitor(log: Path, every: int = 10) -> tuple[RoutingMonitor, list[str]]:
    warnings: list[str] = []
    return RoutingMonitor(every, JsonlWriter(log), warnings.append), warnings


def test_it_is_due_at_the_first_step_of_a_task_and_then_every_so_many(log: Path) -> None:
    watch, _ = monitor(log, every=3)
    assert [step for step in range(1, 11) if watch.is_due(step)] == [1, 3, 6, 9]


def test_a_line_a_router_says_what_it_decided(log: Path) -> None:
    """Of the weights before floor and dropout, which hide what a router does; over all passes of a batch."""
    watch, _ = monitor(log)
    clean = torch.tensor([[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]])
    made = RoutingTrace(RoutingContext(E, torch.ones(2, 4)))
    made.decisions["0"] = Routing(EXPERTS, torch.full((2, 1, 3), 1 / 3), clean, clean)
    made.decisions["1"] = Routing(("shared",))
    other = trace(E, prefer(0, 0.0))
    other.decisions["1"] = Routing(("shared",))
    watch.write(7, E, [made, other])
    [line] = tiny.lines(log)
    assert (line["step"], line["task"], line["router"], line["experts"]) == (7, "embedding", "0", list(EXPERTS))
    assert line["weights"] == pytest.approx([(0.75 + 1 / 3) / 2, (0.25 + 1 / 3) / 2, 1 / 6])
    assert line["active_experts"] == pytest.approx((1.5 + 3) / 2)
    assert line["one_expert_share"] == pytest.approx((0.5 + 0) / 2)
    assert line["entropy"] == pytest.approx((0.5 * math.log(2) / math.log(3) + 1) / 2)


def test_what_is_measured_leaves_padding_out() -> None:
    weights = torch.tensor([[[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]]])
    made = Routing(EXPERTS, weights, weights)
    found = measure(made, RoutingTrace(RoutingContext(E, torch.tensor([[1, 0]]))))
    assert found["weights"] == pytest.approx([0.6, 0.4, 0])
    assert (found["active_experts"], found["one_expert_share"]) == (2, 0)


def test_a_collapse_is_told_once(log: Path) -> None:
    watch, warnings = monitor(log)
    watch.write(1, E, [trace(E, prefer(0), prefer(1, 0.1))])
    assert not warnings
    for step in (2, 3, 4):
        watch.write(step, R, [trace(R, prefer(0), prefer(1, 0.1))])
    assert warnings == [
        "step 2: routing has collapsed in 1 of 2 routers: one expert takes over 95% of both tasks; "
        "raise aux_loss_weight or weight_floor"
    ]


@pytest.mark.parametrize("reranking", [prefer(1), prefer(0, 2.0)], ids=["an expert each", "one task undecided"])
def test_tasks_that_part_have_not_collapsed(reranking: list[float], log: Path) -> None:
    watch, warnings = monitor(log)
    for step in range(3):
        watch.write(step, E, [trace(E, prefer(0))])
        watch.write(step, R, [trace(R, reranking)])
    assert not warnings


def test_sparsegen_is_measured_before_its_floor(log: Path) -> None:
    """The real router, in training."""
    router = RouterFactory(SparsegenConfig(weight_floor=0.5), 1)(EXPERTS, 3, 4, 0).train()
    with torch.no_grad():
        router.weight[0] = 20.0
    context = RoutingContext(E, torch.ones(2, 5))
    decision = router(torch.rand(2, 5, 4) + 0.5, context)
    assert measure(decision, RoutingTrace(context))["one_expert_share"] == 1
    assert decision.weights.min() > 0.1
