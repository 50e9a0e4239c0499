"""A text gives the same vector and the same score whatever stands beside it in the batch, and on either side.

Float32: 1e-5 of the vector's size, or of 1 for a logit; other shapes sum in another order. Bfloat16: every rounding of
a state costs up to 4e-3, and three layers have some twenty of them, which partly cancel; the bound is 3e-2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.data.collate import join
from unimoer.model.unified import UnifiedModel

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
LENGTHS = [5, 16, 1, 11]
HEADS: dict[str, dict[str, Any]] = {
    "mean, linear": {"embedding": {"pooling": "mean"}, "reranking": {"pooling": "mean", "head": "linear"}},
    "last, linear": {"embedding": {"pooling": "last"}, "reranking": {"pooling": "last", "head": "linear"}},
    "last, yes/no": {"embedding": {"pooling": "last"}, "reranking": {"pooling": "last", "head": "yes_no"}},
}


def alone(model: UnifiedModel, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Every text in a batch of its own, without padding."""
    single = [tiny.batch([sequence]) for sequence in sequences]
    return torch.cat([model.embed(batch) for batch in single]), torch.cat([model.score(batch) for batch in single])


def differ(model: UnifiedModel, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """The larger of the worst vector's relative distance and the worst logit's, over the spread of the logits."""
    vectors = max(tiny.relative(one, other) for one, other in zip(found[0], expected[0], strict=True))
    logits = (found[1] - expected[1]).abs().max() / expected[1].abs().max().clamp(min=1)
    return max(vectors, float(logits))


@pytest.mark.parametrize("heads", list(HEADS))
@pytest.mark.parametrize("family", ["qwen3", "llama", "olmo2"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@torch.inference_mode()
def test_neither_padding_nor_company_changes_a_result(
    heads: str, family: str, dtype: str, bases: Callable[[str], Path]
) -> None:
    model = tiny.build(bases(family), noise=0.1, dtype=dtype, **HEADS[heads])
    sequences = tiny.ids(LENGTHS)
    expected = alone(model, sequences)
    assert expected[0].dtype == expected[1].dtype == torch.float32
    assert torch.allclose(expected[0].norm(dim=1), torch.ones(4))
    for padding in ("left", "right"):
        for multiple in (1, 16, 7):
            batch = tiny.batch(sequences, padding, multiple)
            found = model.embed(batch), model.score(batch)
            assert differ(model, found, expected) < TOLERANCE[dtype], (padding, multiple)
    # The texts do differ by far more than the tolerance.
    assert differ(model, (expected[0].roll(1, 0), expected[1].roll(1)), expected) > 0.1


@torch.inference_mode()
def test_the_pad_token_does_not_matter(base: Path) -> None:
    model = tiny.build(base, noise=0.1)
    sequences = tiny.ids(LENGTHS)
    for padding in ("left", "right"):
        one, other = tiny.batch(sequences, padding), tiny.batch(sequences, padding)
        other.input_ids[other.attention_mask == 0] = 77
        assert torch.equal(model.embed(one), model.embed(other))
        assert torch.equal(model.score(one), model.score(other))


def test_gradients_do_not_depend_on_the_side_of_the_padding(base: Path) -> None:
    model, sequences = tiny.build(base, noise=0.1), tiny.ids(LENGTHS)
    gradients = []
    for padding in ("left", "right"):
        model.zero_grad()
        model.score(tiny.batch(sequences, padding, 16)).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.trainable().values()])
    for found, expected in zip(*gradients, strict=True):
        assert torch.isfinite(found).all()
        assert tiny.relative(found, expected) < 1e-5


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_texts_of_two_batches_are_read_alike_in_one(padding: str, attention: str, base: Path) -> None:
    model = tiny.build(base, noise=0.1, embedding={"pooling": "mean", "attention": attention})
    short, long = tiny.batch(tiny.ids([5, 3]), padding), tiny.batch(tiny.ids([9, 20, 4], seed=1), padding, 8)
    for first, second in ((short, long), (long, short)):
        apart = torch.cat([model.embed(first), model.embed(second)])
        assert tiny.relative(model.embed(join(first, second)), apart) < 1e-5
