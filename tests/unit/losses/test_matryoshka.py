"""InfoNCE of several lengths of the same vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unimoer.losses.contrastive import infonce, matryoshka_infonce


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERIES, TEXTS = unit(5, 12), unit(9, 12, seed=1)
RELEVANT = torch.eye(5, 9, dtype=torch.bool)
RELEVANT[1, 7] = True


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("dims", [(12, 6, 3), (2, 12)])
@pytest.mark.parametrize("weights", [None, (0.25, 1.5, 3.0)])
def test_the_loss_is_the_weighted_sum_over_vectors_of_unit_length(
    dims: tuple[int, ...], weights: tuple[float, ...] | None, margin: float | None
) -> None:
    options = {"temperature": 0.1, "false_negative_margin": margin}
    weights = weights if weights is None else weights[: len(dims)]
    loss, terms = matryoshka_infonce(QUERIES, TEXTS, RELEVANT, dims=dims, weights=weights, **options)
    expected = 0.0
    for dim, weight in zip(dims, weights or (1.0,) * len(dims), strict=True):
        short = [
            vectors[:, :dim] / vectors[:, :dim].square().sum(1, keepdim=True).sqrt() for vectors in (QUERIES, TEXTS)
        ]
        single, _ = infonce(*short, RELEVANT, **options)
        assert terms[f"infonce_{dim}"] == pytest.approx(float(single), rel=1e-5)
        expected += weight * float(single)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert loss.dtype == torch.float32


def test_metrics_are_those_of_the_full_dimension_in_any_order() -> None:
    _, full = infonce(QUERIES, TEXTS, RELEVANT, temperature=0.1)
    for dims in ((12, 4), (4, 12)):
        _, terms = matryoshka_infonce(QUERIES, TEXTS, RELEVANT, dims=dims, temperature=0.1)
        assert {name: terms[name] for name in full} == full
        assert terms["infonce_12"] == terms["infonce"] != terms["infonce_4"]


def test_the_full_dimension_alone_is_infonce() -> None:
    queries, twin = QUERIES.clone().requires_grad_(), QUERIES.clone().requires_grad_()
    loss, _ = matryoshka_infonce(queries, TEXTS, RELEVANT, dims=(12,), temperature=0.1)
    plain, _ = infonce(twin, TEXTS, RELEVANT, temperature=0.1)
    loss.backward()
    plain.backward()
    assert torch.equal(loss, plain)
    assert torch.equal(queries.grad, twin.grad)


def test_gradients_are_those_of_finite_differences() -> None:
    queries, texts = QUERIES.double().requires_grad_(), TEXTS.double().requires_grad_()
    relevant = RELEVANT

    def loss(q: Tensor, d: Tensor) -> Tensor:
        return matryoshka_infonce(q, d, relevant, dims=(12, 3), weights=(1.0, 2.0), temperature=0.5)[0]

    assert torch.autograd.gradcheck(loss, (queries, texts))


def test_vectors_without_a_first_part_give_finite_gradients() -> None:
    queries = torch.cat([torch.zeros(5, 3), unit(5, 9)], 1).requires_grad_()
    loss, _ = matryoshka_infonce(queries, TEXTS, RELEVANT, dims=(12, 3), temperature=0.05)
    loss.backward()
    assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("dims", [(), (6, 3), (12, 24), (12, 6, 6), (12, 0), (12, -3)])
def test_dimensions_that_do_not_fit_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="include 12"):
        matryoshka_infonce(QUERIES, TEXTS, RELEVANT, dims=dims, temperature=0.1)


def test_every_dimension_has_its_weight() -> None:
    with pytest.raises(ValueError):
        matryoshka_infonce(QUERIES, TEXTS, RELEVANT, dims=(12, 6), weights=(1.0,), temperature=0.1)


def test_what_is_trained_by_it_ranks_with_its_first_numbers() -> None:
    """Free vectors: after training, the truncated ones find their positive; with InfoNCE alone they do not."""

    def accuracy(dims: tuple[int, ...]) -> float:
        free = [torch.nn.Parameter(unit(16, 12, seed=seed)) for seed in (3, 4)]
        optimizer = torch.optim.SGD(free, lr=1.0)
        relevant = torch.eye(16, dtype=torch.bool)
        for _ in range(60):
            optimizer.zero_grad()
            queries, texts = (F.normalize(vectors, dim=-1) for vectors in free)
            matryoshka_infonce(queries, texts, relevant, dims=dims, temperature=0.1)[0].backward()
            optimizer.step()
        short = [F.normalize(vectors.detach()[:, :3], dim=-1) for vectors in free]
        return infonce(*short, relevant, temperature=0.1)[1]["in_batch_accuracy"]

    assert accuracy((12, 3)) > accuracy((12,)) + 0.2
