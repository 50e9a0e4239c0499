"""Chunk by chunk or all at once, on a network of two layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from unimoer.training.gradcache import cached_loss, split_rows
from unimoer.types import TokenBatch


class Toy(nn.Module):
    """Token ids to unit vectors, with dropout and a side loss that is a mean over rows; counts its calls."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(300, 16)
            self.layer = nn.Linear(16, 8)
            self.head = nn.Linear(8, 1)
        self.dropout = dropout
        self.rows: list[int] = []

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        self.rows.append(len(batch.input_ids))
        mask = batch.attention_mask.unsqueeze(-1).float()
        states = (self.table(batch.input_ids) * mask).sum(1) / mask.sum(1)
        hidden = self.layer(F.dropout(states, self.dropout))
        return F.normalize(hidden, dim=-1), hidden.square().sum(1).mean()

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in (*self.table.parameters(), *self.layer.parameters())]


def loss(embeddings: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Contrastive: every row against every other."""
    half = len(embeddings) // 2
    value = F.cross_entropy(embeddings[:half] @ embeddings[half:].t() / 0.1, torch.arange(half))
    return value, {"contrast": value.item()}


def plain(toy: Toy, chunks: list[TokenBatch]) -> Tensor:
    """The definition: all chunks with their graphs at once."""
    parts, sides = zip(*(toy(chunk) for chunk in chunks), strict=True)
    total = sum(len(part) for part in parts)
    side = sum(side * len(part) / total for part, side in zip(parts, sides, strict=True))
    return loss(torch.cat(parts))[0] + side


BATCH = tiny.batch(tiny.ids([5, 3, 7, 2, 6, 4, 5, 1]))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_value_and_gradients_are_those_of_all_chunks_at_once(rows: int, dropout: float) -> None:
    chunks = split_rows(BATCH, rows)
    toy, twin = Toy(dropout), Toy(dropout)
    torch.manual_seed(7)
    expected = plain(twin, chunks)
    expected.backward()
    torch.manual_seed(7)
    found, metrics = cached_loss(chunks, toy, loss, list(toy.parameters()))
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert 0 < metrics["contrast"] < found.item()
    for one, other in zip(toy.gradients(), twin.gradients(), strict=True):
        assert tiny.relative(one, other) < 1e-6
    assert toy.head.weight.grad is None
    assert toy.rows == 2 * [len(chunk.input_ids) for chunk in chunks]


def test_the_masks_of_the_second_pass_are_those_of_the_first() -> None:
    """Numbers drawn between the passes, or by other chunks, make no difference, and the replay leaves none behind."""
    chunks = split_rows(BATCH, 2)
    toy, twin = Toy(0.4), Toy(0.4)
    torch.manual_seed(7)
    plain(twin, chunks).backward()
    torch.manual_seed(7)
    found, _ = cached_loss(chunks, toy, loss, list(toy.parameters()))
    torch.rand(100)
    before = torch.get_rng_state()
    found.backward()
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(toy.gradients(), twin.gradients(), strict=True):
        assert tiny.relative(one, other) < 1e-6


def test_random_numbers_go_on_as_without_the_cache() -> None:
    chunks = split_rows(BATCH, 2)
    toy = Toy(0.4)
    torch.manual_seed(7)
    plain(toy, chunks)
    expected = torch.rand(3)
    torch.manual_seed(7)
    cached_loss(chunks, toy, loss, list(toy.parameters()))[0].backward()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_without_dropout_chunks_make_no_difference(rows: int) -> None:
    """Neither to the loss nor, when it is a mean over rows, to the side loss; also when the last chunk is short."""
    toy, twin = Toy(), Toy()
    whole, _ = cached_loss([BATCH], twin, loss, list(twin.parameters()))
    whole.backward()
    found, _ = cached_loss(split_rows(BATCH, rows), toy, loss, list(toy.parameters()))
    found.backward()
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    for one, other in zip(toy.gradients(), twin.gradients(), strict=True):
        assert tiny.relative(one, other) < 1e-6


def test_chunks_may_differ_in_length() -> None:
    """Queries and documents in one list."""
    short, long = tiny.batch(tiny.ids([2, 3, 1])), tiny.batch(tiny.ids([9, 8, 11], seed=1))
    chunks = [*split_rows(short, 2), *split_rows(long, 2)]
    toy, twin = Toy(), Toy()
    cached_loss(chunks, toy, loss, list(toy.parameters()))[0].backward()
    plain(twin, [short, long]).backward()
    for one, other in zip(toy.gradients(), twin.gradients(), strict=True):
        assert tiny.relative(one, other) < 1e-6


def test_it_is_scaled_summed_and_differentiated_like_any_loss() -> None:
    chunks = split_rows(BATCH, 3)
    toy, twin = Toy(), Toy()
    parameters = list(toy.layer.parameters())
    found, _ = cached_loss(chunks, toy, loss, list(toy.parameters()))
    gradients = torch.autograd.grad(found / 4 + toy.layer.bias.sum(), parameters)
    expected = torch.autograd.grad(plain(twin, chunks) / 4 + twin.layer.bias.sum(), list(twin.layer.parameters()))
    for one, other in zip(gradients, expected, strict=True):
        assert tiny.relative(one, other) < 1e-6


def test_gradients_add_up_over_two_losses() -> None:
    toy, twin = Toy(), Toy()
    for part in split_rows(BATCH, 4):
        cached_loss(split_rows(part, 2), toy, loss, list(toy.parameters()))[0].backward()
        plain(twin, [part]).backward()
    for one, other in zip(toy.gradients(), twin.gradients(), strict=True):
        assert tiny.relative(one, other) < 1e-6


def test_without_gradients_there_is_one_pass() -> None:
    chunks = split_rows(BATCH, 3)
    toy = Toy()
    with torch.no_grad():
        found, metrics = cached_loss(chunks, toy, loss, list(toy.parameters()))
        expected = plain(Toy(), chunks)
    assert not found.requires_grad
    assert toy.rows == [3, 3, 2]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.keys() == {"contrast"}


def test_activations_of_one_chunk_at_a_time() -> None:
    """No graph outlives the first pass, and each chunk's is gone before the next begins."""
    alive = 0

    def embed(batch: TokenBatch) -> tuple[Tensor, Tensor]:
        nonlocal alive
        part, side = toy(batch)
        if part.requires_grad:
            assert alive == 0
            alive += 1
            part.register_hook(lambda _: forget())
        return part, side

    def forget() -> None:
        nonlocal alive
        alive -= 1

    toy = Toy()
    found, _ = cached_loss(split_rows(BATCH, 2), embed, loss, list(toy.parameters()))
    found.backward()
    assert toy.layer.weight.grad is not None
    assert alive == 0


def test_split_rows_keeps_every_row_in_order() -> None:
    parts = split_rows(BATCH, 3)
    assert [len(part.input_ids) for part in parts] == [3, 3, 2]
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(BATCH, name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_replayed_on_a_gpu() -> None:
    chunks = [chunk.to("cuda") for chunk in split_rows(BATCH, 2)]
    toy, twin = Toy(0.4).cuda(), Toy(0.4).cuda()

    def on_gpu(embeddings: Tensor) -> tuple[Tensor, dict[str, float]]:
        return embeddings.cumsum(0).square().sum(), {}

    torch.manual_seed(7)
    parts, sides = zip(*(twin(chunk) for chunk in chunks), strict=True)
    (on_gpu(torch.cat(parts))[0] + sum(sides) / len(sides)).backward()
    torch.manual_seed(7)
    cached_loss(chunks, toy, on_gpu, list(toy.parameters()))[0].backward()
    for one, other in zip(toy.gradients(), twin.gradients(), strict=True):
        assert tiny.relative(one, other) < 1e-5
