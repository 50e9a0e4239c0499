"""Losses over groups of scores against plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.losses.ranking import bce, group_softmax, listwise, ranknet


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


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_ranknet(scale: float) -> None:
    """Graded labels: every pair of different grades counts once, the better document first."""
    given = scores(3, 4).requires_grad_()
    grades = torch.tensor([[0.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    loss, terms = ranknet(given, grades, scale=scale)
    expected = [
        math.log1p(math.exp(-scale * (row[i] - row[j])))
        for row, grade in zip(given.tolist(), grades.tolist(), strict=True)
        for i in range(4)
        for j in range(4)
        if grade[i] > grade[j]
    ]
    assert len(expected) == 5 + 3 + 4
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert terms["ranknet"] == pytest.approx(loss.item())
    [gradient] = torch.autograd.grad(loss, [given])
    # The printed equation of E2Rank's paper would push the better document down.
    assert gradient[1, 0] < 0 < gradient[1, 1]


def test_listwise() -> None:
    temperature = 0.5
    vectors = torch.nn.functional.normalize(scores(2, 5, 6), dim=-1)
    answers = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loss, terms = listwise(vectors, answers, temperature=temperature, disperse_weight=0.3, dual_weight=0.7)
    rank = dual = disperse = 0.0
    for group, answer in zip(vectors.double(), (1, 0), strict=True):
        first, documents, last = group[0], group[1:-1], group[-1]
        for name, query in (("rank", last), ("dual", first)):
            exponentials = [math.exp(float(document @ query) / temperature) for document in documents]
            value = -math.log(exponentials[answer] / sum(exponentials)) / 2
            rank, dual = (rank + value, dual) if name == "rank" else (rank, dual + value)
        pairs = [(0, 1), (0, 2), (1, 2)]
        mean = sum(math.exp(float(documents[i] @ documents[j]) / temperature) for i, j in pairs) / 3
        disperse += math.log(mean) / 2
    assert float(loss) == pytest.approx(rank + 0.3 * disperse + 0.7 * dual, rel=1e-4)
    assert terms["group_softmax"] == pytest.approx(rank, rel=1e-4)
    assert terms["dual"] == pytest.approx(dual, rel=1e-4)
    assert terms["disperse"] == pytest.approx(disperse, rel=1e-4)
    assert set(terms) == {"group_softmax", "dual", "disperse", "group_accuracy", "score_spread"}


def test_ranknet_without_a_pair_is_no_loss() -> None:
    given = scores(2, 3).requires_grad_()
    loss, _ = ranknet(given, torch.ones(2, 3))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, [given])[0].any()
