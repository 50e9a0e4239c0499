"""What routers read: measured while training, fixed in between, and wide enough for logits to depend on the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from unimoer.config.router import SoftmaxConfig
from unimoer.data.embedded import load_embedded
from unimoer.model.decoder import FusedDecoder
from unimoer.model.routers import LearnedRouter, RouterFactory, Standardiser
from unimoer.model.routers.reading import HORIZON
from unimoer.model.routing import RoutingContext, RoutingTrace
from unimoer.model.unified import UnifiedModel
from unimoer.training.gradcache import cached_loss, split_rows
from unimoer.types import Task, TokenBatch

EXPERTS = {"embedding": 2, "reranking": 2, "shared": 4}
GRAINS = ("sequence", "causal", "token")
DOMAINS = ("kitchen", "garden")


def feed(reading: Standardiser, steps: dict[Task, list[Tensor]]) -> None:
    """One step at a time, both tasks in each."""
    for number in range(max(map(len, steps.values()))):
        count, sums = torch.zeros(len(Task)), torch.zeros(len(Task), 2, len(reading.centre))
        for place, task in enumerate(Task):
            for rows in steps.get(task, [])[number : number + 1]:
                distance = rows - reading.centre
                count[place] = len(rows)
                sums[place] = torch.stack([distance.sum(0), distance.square().sum(0)])
        # As an average over three processes has them.
        reading.update(count / 3, sums / 3)


def test_the_map_is_that_of_everything_read_so_far() -> None:
    """Whatever the features' own sizes; the second task has other texts, and another number of them."""
    torch.manual_seed(0)
    offset, size = torch.tensor([30.0, -2.0, 0.0]), torch.tensor([0.1, 3.0, 1.0])
    first = [offset + size * torch.randn(40, 3) for _ in range(6)]
    reading = Standardiser(3)
    feed(reading, {Task.EMBEDDING: first})
    whole = torch.cat(first)
    assert tiny.relative(reading.centre, whole.mean(0)) < 1e-5
    assert tiny.relative(reading.scale, 1 / whole.std(0, correction=0) / 3**0.5) < 1e-3
    second = [offset + 1 + size * torch.randn(5, 3) for _ in range(6)]
    feed(reading, {Task.RERANKING: second})
    other = torch.cat(second)
    centre = (whole.mean(0) + other.mean(0)) / 2
    variance = ((whole - centre).square().mean(0) + (other - centre).square().mean(0)) / 2
    assert tiny.relative(reading.centre, centre) < 1e-5
    assert tiny.relative(reading.scale, variance.rsqrt() / 3**0.5) < 1e-3


def test_old_steps_are_forgotten() -> None:
    reading = Standardiser(2)
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    feed(reading, {Task.EMBEDDING: [rows + 5] * HORIZON + [rows] * (7 * HORIZON)})
    assert torch.allclose(reading.centre, rows.mean(0), atol=0.15)
    assert torch.allclose(2**-0.5 / reading.scale, torch.tensor([1.0, 0.0]), atol=0.5)


def routed(base: Path, **router: Any) -> UnifiedModel:
    settings = {"type": "random_frozen"} | router
    return tiny.build(base, adapter={"rank": 8, "experts": EXPERTS, "router": settings})


def readings(model: UnifiedModel) -> list[Standardiser]:
    return [module for module in model.modules() if isinstance(module, Standardiser)]


def buffers(model: UnifiedModel) -> list[Tensor]:
    return [buffer.clone() for reading in readings(model) for buffer in reading.buffers()]


@pytest.mark.parametrize("grain", GRAINS)
def test_only_training_steps_are_measured(grain: str, base: Path) -> None:
    model, batch = routed(base, granularity=grain), tiny.batch(tiny.ids([5, 9, 7]))
    start = buffers(model)

    def moved() -> bool:
        return not all(torch.equal(one, other) for one, other in zip(buffers(model), start, strict=True))

    model.eval().embed(batch)
    with torch.no_grad():
        model.train().embed(batch)
    model.after_step()
    assert not moved()
    model.embed(batch)
    assert not moved()
    model.after_step()
    assert moved()


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_chunks_and_cached_chunks_are_measured_as_the_batch(grain: str, padding: str, base: Path) -> None:
    """So accumulation and GradCache measure what one large batch would; padding counts nowhere."""
    sequences = tiny.ids([5, 9, 7, 3, 8])
    batch = tiny.batch(sequences, padding, 16)
    chunks = split_rows(batch, 2)

    def whole(model: UnifiedModel) -> None:
        model.embed(batch)

    def alone(model: UnifiedModel) -> None:
        for sequence in sequences:
            model.embed(tiny.batch([sequence]))

    def cached(model: UnifiedModel) -> None:
        parameters = list(model.trainable(Task.EMBEDDING).values())
        embed: Callable[[TokenBatch], tuple[Tensor, Tensor]] = lambda chunk: (model.embed(chunk), torch.zeros(()))  # noqa: E731
        cached_loss(chunks, embed, lambda vectors: (vectors.square().sum(), {}), parameters)[0].backward()

    found = []
    for way in (whole, alone, cached):
        model = routed(base, type="softmax", granularity=grain).train()
        way(model)
        model.after_step()
        found.append(buffers(model))
    for expected, *others in zip(*found, strict=True):
        for other in others:
            assert torch.allclose(other, expected, rtol=1e-3, atol=1e-5)


def batches(model: UnifiedModel, ids: list[list[int]], rows: int = 20) -> list[TokenBatch]:
    return [tiny.batch(ids[start : start + rows]) for start in range(0, len(ids), rows)]


def measure(model: UnifiedModel, documents: list[list[int]], pairs: list[list[int]]) -> None:
    """Steps of both tasks, in turn, without an optimizer."""
    model.train()
    for texts, both in zip(batches(model, documents), batches(model, pairs), strict=True):
        model.embed(texts)
        model.after_step()
        model.score(both)
        model.after_step()
    model.eval()


def deviation(model: UnifiedModel, documents: list[list[int]], pairs: list[list[int]]) -> Tensor:
    """Of each router's logits between texts it has not seen, half of them documents, half pairs: `[layers, E]`."""
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for ids, forward in ((documents, model.embed), (pairs, model.score)):
            for batch in batches(model, ids):
                forward(batch, trace := RoutingTrace())
                for name, decision in trace.decisions.items():
                    assert decision.logits is not None
                    # Of the tokens so far, all of them.
                    found.setdefault(name, []).append(decision.logits[:, -1])
    return torch.stack([torch.cat(logits).std(0) for logits in found.values()])


def tiny_texts(model: UnifiedModel) -> tuple[list[list[int]], list[list[int]]]:
    data = [tiny.dataset(domain) for domain in DOMAINS]
    documents = [document.content for one in data for document in one.corpus.values()]
    queries = [next(iter(one.queries.values())) for one in data for _ in one.corpus]
    return model.prompter.documents(documents), model.prompter.pairs(queries, documents)


@pytest.mark.parametrize("grain", ["sequence", "causal"])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_spread_is_the_deviation_of_the_logits_between_texts(grain: str, spread: float, base: Path) -> None:
    """A random map of few directions: a router deviates from it by a third, the mean over routers by a fifth."""
    model = routed(base, spread=spread, granularity=grain)
    # Of equal length, so that the last place is a real token in each.
    documents, pairs = ([ids[:12] for ids in texts if len(ids) >= 12] for texts in tiny_texts(model))
    half = min(len(documents), len(pairs)) // 2
    measure(model, documents[:half], pairs[:half])
    found = deviation(model, documents[half : 2 * half], pairs[half : 2 * half]) / spread
    assert float(found.square().mean().sqrt()) == pytest.approx(1, rel=0.35)
    assert float(found.min()) > 0.3


@pytest.mark.assets
def test_spread_holds_on_the_embedded_model() -> None:
    """Over 6 layers and 3 experts within 20%, where the gain of the base's norms left 0.01 to 0.04."""
    model = UnifiedModel(
        tiny.model_config(
            "embedded:smollm2-135m",
            layers=6,
            dtype="auto",
            adapter={"rank": 8, "experts": EXPERTS, "router": {"type": "random_frozen"}},
        ),
        tiny.CPU,
    )
    texts = [document.content for name in ("hpo", "cwe") for document in list(load_embedded(name).corpus.values())[:80]]
    queries = [query for name in ("hpo", "cwe") for query in list(load_embedded(name).queries.values())[:80]]
    documents, pairs = model.prompter.documents(texts), model.prompter.pairs(queries, texts)
    measure(model, documents[::2], pairs[::2])
    found = deviation(model, documents[1::2], pairs[1::2])
    assert float(found.square().mean().sqrt()) == pytest.approx(1, rel=0.2)
    assert 0.4 < float(found.min()) < float(found.max()) < 2


def separation(router: LearnedRouter | Tensor, states: Tensor, groups: Tensor) -> float:
    """Mean absolute difference of the groups' mean weights."""
    with torch.no_grad():
        weights = decide(router, states)
    return float((weights[groups == 0].mean(0) - weights[groups == 1].mean(0)).abs().mean())


def decide(router: LearnedRouter | Tensor, states: Tensor) -> Tensor:
    if isinstance(router, Tensor):
        return F.linear(states.mean(1), router).softmax(-1)
    found = router(states, RoutingContext(Task.EMBEDDING, torch.ones(states.shape[:2])))
    router.observe(RoutingContext(Task.EMBEDDING, torch.ones(states.shape[:2])), found)
    return found.weights[:, 0]


def test_a_few_steps_teach_a_router_two_kinds_of_texts(base: Path) -> None:
    """From states that lie as close together as a language model's, which the input of old, times the gain, hides."""
    torch.manual_seed(0)
    width, gain = 64, 0.1
    shared, kind = 3 * torch.randn(width), 0.3 * torch.randn(width)
    groups = torch.arange(32) % 2
    states = shared + groups[:, None, None] * kind + 0.3 * torch.randn(32, 6, width)
    router: Any = RouterFactory(SoftmaxConfig(noise_epsilon=0.0), 1)(["one", "two"], 2, width, 0).train()
    # Of the size that it had there.
    old = (router.weight.detach() * width**-0.5).requires_grad_()
    normal = states * states.square().mean(-1, keepdim=True).rsqrt() * gain
    for one, read, parameter in ((router, states, router.weight), (old, normal, old)):
        optimizer = torch.optim.AdamW([parameter], lr=1e-2)
        for _ in range(40):
            loss = F.nll_loss(decide(one, read).log(), groups)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if one is router:
                router.after_step()
    assert separation(router.eval(), states, groups) > 0.8
    assert separation(old, normal, groups) < 0.2


def test_an_untrained_model_needs_no_statistics(base: Path) -> None:
    """Centre 0 and deviation 1 until the first step; the experts are neutral then, so the model is its base."""
    model, plain = routed(base), tiny.build(base)
    batch = tiny.batch(tiny.ids([5, 9]))
    for reading in readings(model):
        assert not reading.centre.any()
        assert torch.equal(reading.scale, torch.full((32,), 32**-0.5))
    assert tiny.relative(model.embed(batch), plain.embed(batch)) < 1e-6
    assert isinstance(model.decoder, FusedDecoder)
