"""Leaving padding out changes nothing but the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.model import packing
from unimoer.model.packing import Packing
from unimoer.model.routing import RoutingTrace
from unimoer.types import TokenBatch

Bases = Callable[[str], Path]
LENGTHS = [9, 2, 5, 1, 7]
ROUTED = {
    "rank": 4,
    "alpha": 8.0,
    "experts": {"embedding": 2, "reranking": 2, "shared": 4},
    "router": {"type": "softmax"},
}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack even the smallest batch."""
    monkeypatch.setattr(packing, "MULTIPLE", 4)


def both(run: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The same results packed and not."""
    packed = run()
    monkeypatch.setattr(packing, "WORTH_IT", 2.0)
    return list(zip(packed, run(), strict=True))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("family", tiny.FUSED)
@pytest.mark.parametrize("granularity", [None, "sequence", "causal", "token"])
def test_states_and_gradients(
    family: str, padding: str, causal: bool, granularity: str | None, bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = {"rank": 4, "alpha": 8.0}
    if granularity is not None:
        adapter = {**ROUTED, "router": {"type": "softmax", "granularity": granularity}}
    model = tiny.build(bases(family), noise=0.1, adapter=adapter, embedding={
        "pooling": "mean", "attention": "causal" if causal else "bidirectional",
    })  # fmt: skip
    batch = tiny.batch(tiny.ids(LENGTHS), padding)
    assert Packing.of(batch.attention_mask) is not None
    weights = torch.randn(len(LENGTHS), 32, generator=torch.Generator().manual_seed(1))

    def run() -> list[Tensor]:
        trace = RoutingTrace()
        vectors = model.embed(batch, trace)
        trained = list(model.trainable().values())[:-2]
        found = torch.autograd.grad((vectors * weights).sum(), trained, allow_unused=True)
        decisions = [decision.weights for decision in trace.decisions.values() if decision.weights is not None]
        # What a router says of padding is nobody's business.
        real = batch.attention_mask.bool()
        decisions = [weights if weights.shape[1] == 1 else weights[real] for weights in decisions]
        return [vectors, *decisions, *(grad for grad in found if grad is not None)]

    pairs = both(run, monkeypatch)
    assert len(pairs) > 20
    for one, other in pairs:
        assert tiny.relative(one, other) < 1e-5


@pytest.mark.usefixtures("always")
def test_no_padding_is_computed_but_to_fill_up() -> None:
    batch = tiny.batch(tiny.ids(LENGTHS))
    found = Packing.of(batch.attention_mask)
    assert found is not None
    assert len(found.index) == 24  # of 45; 24 are real
    assert batch.attention_mask.flatten()[found.index].all()
    shorter = tiny.batch(tiny.ids([9, 2, 5, 1, 6]))
    filled = Packing.of(shorter.attention_mask)
    assert filled is not None
    assert (len(filled.index), int(shorter.attention_mask.flatten()[filled.index].sum())) == (24, 23)


@pytest.mark.usefixtures("always")
def test_packing_and_unpacking_are_each_others_inverse_and_transpose() -> None:
    found = Packing.of(tiny.batch(tiny.ids(LENGTHS)).attention_mask)
    assert found is not None
    packed = torch.randn(1, 24, 3, dtype=torch.float64, requires_grad=True)
    whole = torch.randn(5, 9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(found.pack(found.unpack(packed)), packed)
    assert torch.allclose((found.pack(whole) * packed).sum(), (whole * found.unpack(packed)).sum())
    assert torch.autograd.gradcheck(found.pack, whole)
    assert torch.autograd.gradcheck(found.unpack, packed)


def test_full_batches_are_left_alone() -> None:
    assert Packing.of(torch.ones(16, 40)) is None
    almost = torch.ones(16, 40)
    almost[0, 20:] = 0
    assert Packing.of(almost) is None
    half = torch.ones(16, 40)
    half[::2, 8:] = 0
    found = Packing.of(half)
    assert found is not None
    assert len(found.index) == 384  # all that are real, a multiple of 128 already


def test_a_batch_of_real_size_is_packed(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(bases("qwen3"), noise=0.1)
    batch: TokenBatch = tiny.batch(tiny.ids([4, 30] * 12), multiple=16)
    assert Packing.of(batch.attention_mask) is not None
    with torch.no_grad():
        [(one, other)] = both(lambda: [model.score(batch)], monkeypatch)
    assert tiny.relative(one, other) < 1e-5
