"""Load balance and z-loss of routing decisions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unimoer.losses.balance import load_balance, usage, z_loss

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def balance(weights: Tensor, mask: Tensor = MASK) -> float:
    return load_balance(*usage(weights, mask)).item()


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


def test_shares_and_means_are_those_of_real_tokens() -> None:
    weights = torch.rand(2, 4, 3).softmax(-1)
    weights[0, 3], weights[1, 1:] = torch.tensor([1e6, 0, 0]), torch.tensor([0, 1e6, 0])
    share, mean = usage(weights, MASK)
    real = torch.stack([*weights[0, :3], weights[1, 0]])
    assert torch.allclose(mean, real.mean(0))
    assert torch.allclose(share, torch.nn.functional.one_hot(real.argmax(-1), 3).float().mean(0))
    assert load_balance(share, mean) == pytest.approx(3 * float((share * mean).sum()))


def test_one_weight_a_text_counts_once_whatever_the_padding() -> None:
    weights = torch.tensor([[[0.7, 0.3]], [[0.2, 0.8]]])
    for mask in (MASK, torch.ones(2, 9), torch.zeros(2, 9)):
        share, mean = usage(weights, mask)
        assert torch.allclose(share, torch.tensor([0.5, 0.5]))
        assert torch.allclose(mean, torch.tensor([0.45, 0.55]))


def test_a_tie_counts_for_all_that_share_it() -> None:
    """Or equal weights, as all routers begin with, would count for the first expert."""
    share, _ = usage(torch.tensor([[[0.4, 0.4, 0.2]]]), torch.ones(1, 1))
    assert share.tolist() == [0.5, 0.5, 0]
    share, _ = usage(torch.full((5, 1, 4), 0.25), torch.ones(5, 1))
    assert share.tolist() == [0.25] * 4


def test_downhill_takes_weight_from_the_busiest_expert() -> None:
    """Through the mean weight alone: the share is a count, without a gradient."""
    logits = torch.tensor([[[2.0, 0.0, -1.0]]], requires_grad=True)
    share, mean = usage(logits.softmax(-1), torch.ones(1, 1))
    assert not share.requires_grad
    load_balance(share, mean).backward()
    assert logits.grad[0, 0, 0] > 0
    assert torch.all(logits.grad[0, 0, 1:] < 0)


def test_the_z_loss_is_the_squared_log_sum_exp_of_real_tokens() -> None:
    logits = torch.randn(2, 4, 3)
    logits[0, 3] = logits[1, 1:] = 1e6
    real = [*logits[0, :3], logits[1, 0]]
    expected = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in torch.stack(real).tolist()) / 4
    assert z_loss(logits, MASK).item() == pytest.approx(expected, rel=1e-5)
    assert z_loss(torch.zeros(2, 1, 3), MASK).item() == pytest.approx(math.log(3) ** 2)
