"""InfoNCE against a loop over rows in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.losses.contrastive import infonce


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(queries: Tensor, documents: Tensor, relevant: Tensor, temperature: float, margin: float | None) -> float:
    losses = []
    for i, query in enumerate(queries.double()):
        cosines = [float(query @ document) for document in documents.double()]
        negatives = [
            cosine
            for j, cosine in enumerate(cosines)
            if j != i and not relevant[i, j] and (margin is None or cosine <= cosines[i] + margin)
        ]
        every = [cosines[i], *negatives]
        largest = max(every)
        total = sum(math.exp((cosine - largest) / temperature) for cosine in every)
        losses.append(math.log(total) - (cosines[i] - largest) / temperature)
    return sum(losses) / len(losses)


def own(rows: int, columns: int) -> Tensor:
    """Every query's own positive is judged relevant, as the collator says."""
    return torch.eye(rows, columns, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("margin", [None, 0.0, 0.1])
@pytest.mark.parametrize("documents", [6, 15])
def test_the_loss_is_that_of_the_formula(temperature: float, margin: float | None, documents: int) -> None:
    queries, texts = unit(6, 8), unit(documents, 8, seed=1)
    relevant = own(6, documents)
    relevant[2, 4] = relevant[4, 2] = relevant[0, 5] = True
    loss, terms = infonce(queries, texts, relevant, temperature=temperature, false_negative_margin=margin)
    assert loss.dtype == torch.float32
    expected = by_hand(queries, texts, relevant, temperature, margin)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert terms["infonce"] == pytest.approx(expected, rel=1e-5)
    assert terms["positive_cosine"] == pytest.approx(float((queries * texts[:6]).sum(1).mean()), abs=1e-6)


def test_gradients_are_those_of_plain_cross_entropy() -> None:
    """And a masked document gets none, not even a tiny one."""
    queries, texts = unit(4, 8).requires_grad_(), unit(8, 8, seed=1).requires_grad_()
    relevant = own(4, 8)
    relevant[:, 7] = True
    found = torch.autograd.grad(infonce(queries, texts, relevant, temperature=0.1)[0], [queries, texts])
    logits = queries @ texts[:7].t() / 0.1
    expected = torch.autograd.grad(F.cross_entropy(logits, torch.arange(4)), [queries, texts])
    for one, other in zip(found, expected, strict=True):
        assert tiny.relative(one, other) < 1e-5
    assert not found[1][7].any()


def test_a_relevant_document_is_no_negative_of_the_query() -> None:
    """Twice the same query in a batch: both positives are relevant to both."""
    query, positive, other = unit(1, 8), unit(1, 8, seed=1), unit(1, 8, seed=2)
    queries, texts = torch.cat([query, query, other]), torch.cat([positive, positive, other])
    relevant = own(3, 3)
    relevant[0, 1] = relevant[1, 0] = True
    loss, terms = infonce(queries, texts, relevant, temperature=0.1)
    alone, _ = infonce(torch.cat([query, other]), torch.cat([positive, other]), own(2, 2), temperature=0.1)
    wrong, _ = infonce(queries, texts, own(3, 3), temperature=0.1)
    per_row = torch.tensor([float(alone), float(loss)])
    assert per_row.isfinite().all()
    assert terms["masked_negatives"] == pytest.approx(2 / 3)
    assert float(loss) < float(wrong) - 0.3


def test_the_margin_masks_what_outranks_the_positive_by_more() -> None:
    queries = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([1.0, 0.6, 0.95, 1.2])
    texts = torch.stack([angles.cos(), angles.sin()], 1)
    cosines = angles.cos()
    for margin in (0.0, 0.05, 0.3, 1.0):
        _, terms = infonce(queries, texts, own(1, 4), temperature=0.1, false_negative_margin=margin)
        assert terms["masked_negatives"] == int((cosines > cosines[0] + margin).sum())


def test_the_positive_is_never_masked_and_its_judgement_is_left_alone() -> None:
    queries, texts = unit(3, 8), unit(3, 8, seed=1)
    relevant = torch.ones(3, 3, dtype=torch.bool)
    loss, terms = infonce(queries, texts, relevant, temperature=0.05, false_negative_margin=0.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert terms["masked_negatives"] == 2
    assert relevant.all()


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_at_the_extremes(sign: int) -> None:
    """All vectors alike or opposite, at a temperature where exp(1 / t) leaves float32."""
    queries = torch.tensor([[1.0, 0.0]] * 3).requires_grad_()
    texts = (sign * torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])).requires_grad_()
    loss, _ = infonce(queries, texts, own(3, 4), temperature=0.005, false_negative_margin=0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(texts.grad).all()


def test_accuracy_counts_the_rows_that_rank_their_positive_first() -> None:
    queries = torch.eye(3)
    texts = torch.eye(3)[[0, 2, 1]]
    _, terms = infonce(queries, texts, own(3, 3), temperature=0.1)
    assert terms["in_batch_accuracy"] == pytest.approx(1 / 3)
