"""Load balance and z-loss of routing decisions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unimoer.losses.balance import load_balance, mean_weights, z_loss

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def balance(weights: Tensor, mask: Tensor = MASK) -> float:
    return load_balance(mean_weights(weights, mask)).item()


def test_it_is_one_when_all_experts_are_used_alike() -> None:
    equal = torch.full((2, 4, 3), 1 / 3)
    assert balance(equal) == pytest.approx(1)
    # Each text its own expert: nobody shares, and still all are used.
    assert balance(torch.eye(3).unsqueeze(1), torch.ones(3, 4)) == pytest.approx(1)


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_it_is_their_number_when_one_does_all(experts: int) -> None:
    alone = torch.zeros(2, 4, experts)
    alone[..., 1] = 1
    assert balance(alone) == pytest.approx(experts)


def test_means_are_those_of_real_tokens() -> None:
    weights = torch.rand(2, 4, 3).softmax(-1)
    weights[0, 3], weights[1, 1:] = torch.tensor([1e6, 0, 0]), torch.tensor([0, 1e6, 0])
    mean = mean_weights(weights, MASK)
    real = torch.stack([*weights[0, :3], weights[1, 0]])
    assert torch.allclose(mean, real.mean(0))
    assert load_balance(mean) == pytest.approx(3 * float(real.mean(0).square().sum()))


def test_one_weight_a_text_counts_once_whatever_the_padding() -> None:
    weights = torch.tensor([[[0.7, 0.3]], [[0.2, 0.8]]])
    for mask in (MASK, torch.ones(2, 9), torch.zeros(2, 9)):
        assert torch.allclose(mean_weights(weights, mask), torch.tensor([0.45, 0.55]))


def test_downhill_takes_weight_from_the_busiest_expert_in_proportion() -> None:
    """f has no gradient: the slope of a weight is E times the mean weight, and not twice that."""
    weights = torch.tensor([[[0.5, 0.3, 0.2]]], requires_grad=True)
    load_balance(mean_weights(weights, torch.ones(1, 1))).backward()
    assert torch.allclose(weights.grad, 3 * weights.detach())


def test_the_share_is_one_of_what_was_given_out() -> None:
    """Tsallis routers drop experts and scale nothing up: balanced weights of mass 0.6 give 0.6, not its square."""
    mean = torch.tensor([0.2, 0.2, 0.2])
    assert load_balance(mean).item() == pytest.approx(0.6)


def test_weights_that_nearly_agree_are_nearly_left_alone() -> None:
    """By first choices the slope would jump to its largest as soon as one expert is ahead at all."""
    slopes = []
    for lead in (0.0, 1e-3, 1e-2):
        logits = torch.tensor([[[lead, 0.0, 0.0]]], requires_grad=True)
        load_balance(mean_weights(logits.softmax(-1), torch.ones(1, 1))).backward()
        slopes.append(float(logits.grad[0, 0, 0]))
    assert slopes[0] == pytest.approx(0, abs=1e-7)
    assert slopes[2] == pytest.approx(10 * slopes[1], rel=0.02)


def test_the_z_loss_is_the_squared_log_sum_exp_of_real_tokens_centred() -> None:
    logits = torch.randn(2, 4, 3)
    logits[0, 3] = logits[1, 1:] = 1e6
    real = [*logits[0, :3], logits[1, 0]]
    rows = [[x - sum(row) / 3 for x in row] for row in torch.stack(real).tolist()]
    expected = sum((math.log(sum(map(math.exp, row))) - math.log(3)) ** 2 for row in rows) / 4
    assert z_loss(logits, MASK).item() == pytest.approx(expected, rel=1e-4)


def test_the_z_loss_knows_spread_and_nothing_else() -> None:
    ones = torch.ones(2, 1)
    assert z_loss(torch.full((2, 1, 3), 7.0), ones).item() == pytest.approx(0, abs=1e-9)
    apart = torch.tensor([[[4.0, 0.0, -1.0]], [[0.5, 0.0, 0.0]]])
    assert z_loss(apart + 3, ones).item() == pytest.approx(z_loss(apart, ones).item(), rel=1e-5)
    # At the level where a plain z-loss is zero, its slope is zero too; here the logits come together.
    level = torch.tensor([[[5.0, 0.0, 0.0]]])
    level = (level - level.logsumexp(-1, keepdim=True)).requires_grad_()
    z_loss(level, torch.ones(1, 1)).backward()
    assert level.grad[0, 0, 0] > 0.5 and torch.all(level.grad[0, 0, 1:] < 0)
