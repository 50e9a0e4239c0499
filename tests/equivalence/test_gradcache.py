"""The cached contrastive loss is the plain one: same value, same gradients, dropout included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.config.gradients import PCGradConfig
from unimoer.losses.contrastive import infonce
from unimoer.model.routing import RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.training.gradcache import cached_loss, split_rows
from unimoer.training.multitask import build_combiner
from unimoer.training.objectives import compute_loss
from unimoer.training.routing import RoutingLosses
from unimoer.types import EmbeddingBatch, Task, TokenBatch

TOLERANCE = 5e-6
"""Of gradients through three layers: chunks sum them over rows in another order."""
QUERIES = tiny.batch(tiny.ids([5, 3, 7, 4, 6], seed=1))
DOCUMENTS = tiny.batch(tiny.ids([9, 12, 8, 10, 11, 7, 9, 12, 10, 8], seed=2))
RELEVANT = torch.eye(5, 10, dtype=torch.bool)
SIDE = 0.1


def model(base: Path, dropout: float = 0.0, *, router: dict[str, Any] | None = None, **changes: Any) -> UnifiedModel:
    """Adapters that are not neutral, training as the loop does."""
    adapter: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": dropout}
    if router is not None:
        adapter |= {"experts": {"embedding": 2, "reranking": 2, "shared": 4}, "router": router}
    return tiny.build(base, noise=0.1, adapter=adapter, **changes).train()


def embedder(one: UnifiedModel) -> Any:
    """Embeddings, and a mean over rows in place of a router's loss."""

    def embed(chunk: TokenBatch) -> tuple[Tensor, Tensor]:
        vectors = one.embed(chunk)
        return vectors, SIDE * vectors.abs().sum(1).mean()

    return embed


def contrast(embeddings: Tensor) -> tuple[Tensor, dict[str, float]]:
    queries, documents = embeddings.split([5, 10])
    return infonce(queries, documents, RELEVANT, temperature=0.05, false_negative_margin=0.1)


def chunks(rows: int) -> list[TokenBatch]:
    return [*split_rows(QUERIES, rows), *split_rows(DOCUMENTS, rows)]


def plain(one: UnifiedModel, parts: list[TokenBatch]) -> Tensor:
    vectors = [one.embed(part) for part in parts]
    side = SIDE * torch.cat(vectors).abs().sum(1).mean()
    return contrast(torch.cat(vectors))[0] + side


def cached(one: UnifiedModel, parts: list[TokenBatch]) -> Tensor:
    return cached_loss(parts, embedder(one), contrast, list(one.trainable().values()))[0]


def agree(one: UnifiedModel, other: UnifiedModel) -> None:
    twins = other.trainable()
    for name, parameter in one.trainable().items():
        if name.startswith("head."):
            assert parameter.grad is None
        else:
            assert tiny.relative(parameter.grad, twins[name].grad) < TOLERANCE, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_dropout_it_is_the_plain_loss_of_the_same_chunks(checkpointing: bool, base: Path) -> None:
    """Masks are drawn chunk by chunk, so the plain pass goes through the same chunks, all graphs at once."""
    one, other = (model(base, 0.3, gradient_checkpointing=on) for on in (checkpointing, False))
    torch.manual_seed(5)
    expected = plain(other, chunks(2))
    expected.backward()
    torch.manual_seed(5)
    found = cached(one, chunks(2))
    found.backward()
    assert tiny.relative(found, expected) < TOLERANCE
    agree(one, other)
    # The masks matter: with others, the gradients are others.
    stranger = model(base, 0.3)
    torch.manual_seed(6)
    plain(stranger, chunks(2)).backward()
    with pytest.raises(AssertionError):
        agree(one, stranger)


@pytest.mark.parametrize("granularity", ["sequence", "causal", "token"])
@pytest.mark.parametrize("kind", ["sparsegen", "softmax"])
def test_routing_is_replayed_with_its_noise(kind: str, granularity: str, base: Path) -> None:
    """Jitter, noise on the logits and experts left out: all drawn again as they were, for the routers too."""
    noise = {"noise_epsilon": 0.2, "logit_noise": 0.3, "expert_dropout": 0.3, "weight_floor": 0.05}
    router = {"type": kind, "granularity": granularity, **noise}
    one, other = (model(base, 0.3, router=router) for _ in range(2))
    torch.manual_seed(5)
    plain(other, chunks(2)).backward()
    torch.manual_seed(5)
    cached(one, chunks(2)).backward()
    agree(one, other)
    routers = [parameter.grad for name, parameter in one.trainable().items() if ".routers." in name]
    assert routers
    assert any(gradient.any() for gradient in routers if gradient is not None)


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_without_dropout_it_is_the_plain_loss_whatever_the_chunks(rows: int, base: Path) -> None:
    one, other = model(base), model(base)
    expected = plain(other, [QUERIES, DOCUMENTS])
    expected.backward()
    found = cached(one, chunks(rows))
    found.backward()
    assert tiny.relative(found, expected) < TOLERANCE
    agree(one, other)


def test_surgery_sees_the_gradient_of_the_whole_batch(base: Path) -> None:
    """The cached loss of one task meets an ordinary one of the other."""
    one, other = model(base, 0.3), model(base, 0.3)
    for current, build in ((one, cached), (other, plain)):
        torch.manual_seed(5)
        losses = {Task.EMBEDDING: build(current, chunks(3)), Task.RERANKING: current.score(DOCUMENTS).square().mean()}
        combiner = build_combiner(PCGradConfig(), tuple(Task), dict.fromkeys(Task, 1.0))
        combiner.backward(losses, list(current.trainable().values()))
    twins = other.trainable()
    for name, parameter in one.trainable().items():
        assert tiny.relative(parameter.grad, twins[name].grad) < TOLERANCE, name


def test_a_replay_balances_against_what_the_first_pass_had_seen(base: Path, experiment: Callable[..., Any]) -> None:
    """With surgery, the other task's batch of the same step comes in between, and is remembered."""
    router = {"type": "softmax", "aux_loss_weight": 5.0, "z_loss_weight": 0.0, "noise_epsilon": 0.0}
    settings = tiny.parsed(experiment(training__embedding__gradcache_rows=3)).training
    batch = EmbeddingBatch("kitchen", QUERIES, DOCUMENTS, RELEVANT)
    gradients = []
    for newer in (False, True):
        one = model(base, router=router)
        # Routers that part, so that there is something to balance.
        for name, parameter in one.trainable().items():
            if ".routers." in name:
                parameter.data *= 20
        routing = RoutingLosses(one.config.adapter.router)
        one.score(DOCUMENTS, trace := RoutingTrace())
        routing.remember(Task.RERANKING, [trace])
        loss, _ = compute_loss(one, batch, settings, routing=routing)
        if newer:
            seen = routing.state_dict()
            routing.load_state_dict({name: mean.flip(0) for name, mean in seen.items()})
        loss.backward()
        gradients.append({name: p.grad for name, p in one.trainable().items() if ".routers." in name})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient.any()
        assert torch.equal(gradients[1][name], gradient), name
