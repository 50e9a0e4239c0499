"""Losses over groups of scores against plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.losses.ranking import bce, group_softmax


def scores(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def labels(groups: int, size: int) -> Tensor:
    found = torch.zeros(groups, size)
    found[:, 0] = 1
    return found


@pytest.mark.parametrize("weight", [1.0, 7.0, 0.5])
def test_bce(weight: float) -> None:
    given, answers = scores(5, 4), labels(5, 4)
    loss, terms = bce(given, answers, positive_weight=weight)
    expected = 0.0
    for score, label in zip(given.flatten().tolist(), answers.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-score))
        expected -= weight * math.log(probability) if label else math.log(1 - probability)
    assert float(loss) == pytest.approx(expected / 20, rel=1e-5)
    assert terms["bce"] == pytest.approx(expected / 20, rel=1e-5)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("temperature", [1.0, 0.1, 5.0])
def test_group_softmax(temperature: float) -> None:
    given = scores(5, 4)
    loss, terms = group_softmax(given, labels(5, 4), temperature=temperature)
    expected = 0.0
    for row in given.tolist():
        exponentials = [math.exp(score / temperature) for score in row]
        expected -= math.log(exponentials[0] / sum(exponentials))
    assert float(loss) == pytest.approx(expected / 5, rel=1e-4)
    assert terms["group_softmax"] == pytest.approx(expected / 5, rel=1e-4)


def test_group_softmax_of_one_negative_is_bce_of_the_difference() -> None:
    """RankNet's pairwise loss is the same thing, by another road."""
    given = scores(6, 2).requires_grad_()
    pairwise = torch.nn.functional.softplus(given[:, 1] - given[:, 0]).mean()
    loss, _ = group_softmax(given, labels(6, 2))
    assert tiny.relative(loss, pairwise) < 1e-5
    [found], [expected] = (torch.autograd.grad(value, [given]) for value in (loss, pairwise))
    assert tiny.relative(found, expected) < 1e-5


@pytest.mark.parametrize("loss", [bce, group_softmax])
@pytest.mark.parametrize("size", [1e4, 1e30, -1e4])
def test_gradients_are_finite_at_the_extremes(loss: object, size: float) -> None:
    given = torch.tensor([[-size, size, 0.0], [size, size, -size]], requires_grad=True)
    value, _ = loss(given, labels(2, 3))  # type: ignore[operator]
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(given.grad).all()


def test_metrics_of_a_group() -> None:
    given = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    for loss in (bce, group_softmax):
        _, terms = loss(given, labels(3, 3))
        # A tie counts as a hit here; the spread beside it says that nothing was ranked.
        assert terms["group_accuracy"] == pytest.approx(2 / 3)
        assert terms["score_spread"] == pytest.approx(2 * math.sqrt(2 / 3) / 3)
