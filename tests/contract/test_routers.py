"""What every router promises, for every granularity that it has. A new member of `RouterConfig` is covered as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import tiny
from unimoer.config import AdapterConfig, RouterConfig
from unimoer.config.router import LearnedRouterConfig
from unimoer.errors import UserError
from unimoer.model.budget import BaseShape, router_parameters
from unimoer.model.checkpoint import fingerprint, load_model, save_model
from unimoer.model.decoder import FusedDecoder, build_decoder
from unimoer.model.routers import Router, RouterFactory
from unimoer.model.routing import Routing, RoutingContext, RoutingTrace
from unimoer.types import Task, TokenBatch

MEMBERS: tuple[type[Any], ...] = get_args(get_args(RouterConfig)[0])
WIDTH = 16
LENGTHS = [5, 1, 7, 4]
SUMS = {"hard_shared": (2.0, 2.0), "tsallis": (0.1, 1.0)}
"""What the weights of a decision add up to, where it is not 1; `tsallis` drops experts and scales nothing up."""
QUIET = {"noise_epsilon": 0.0, "logit_noise": 0.0, "expert_dropout": 0.0, "weight_floor": 0.0}


def variants() -> Iterator[Any]:
    for member in MEMBERS:
        if "granularity" in member.model_fields:
            for grain in get_args(member.model_fields["granularity"].annotation):
                config = member(granularity=grain)
                yield pytest.param(config, id=f"{config.type}-{grain}")
        else:
            yield pytest.param(member(), id=member().type)
        if member().learned:
            yield pytest.param(member(frozen=True), id=f"{member().type}-frozen")


VARIANTS = list(variants())
LEARNED = [variant for variant in VARIANTS if isinstance(variant.values[0], LearnedRouterConfig)]
every = pytest.mark.parametrize("config", VARIANTS)
learned = pytest.mark.parametrize("config", LEARNED)


def by_token(config: Any) -> bool:
    return getattr(config, "granularity", None) in ("token", "causal")


def names(config: Any) -> tuple[str, ...]:
    """A task router without a shared expert has no use for one."""
    return config.named_experts or ("embedding", "reranking", "shared")


def quiet(config: Any) -> Any:
    return config.model_copy(update=QUIET) if isinstance(config, LearnedRouterConfig) else config


def make(config: Any, noise: float = 0.5) -> Router:
    """The router of the middle one of three layers, in training."""
    torch.manual_seed(0)
    router = RouterFactory(config, 3)(names(config), len(names(config)), WIDTH, 1)
    tiny.stir(router, noise)
    return router


def texts(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor], side: str = "right", fill: float = 0.0, length: int = 9) -> tuple[Tensor, Tensor]:
    """`[B, T, d]` and its mask."""
    hidden, mask = torch.full((len(rows), length, WIDTH), fill), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        hidden[index, span], mask[index, span] = row, 1
    return hidden, mask


def weights(decision: Routing, config: Any, length: int) -> Tensor:
    """`[B or 1, T, E]`, whatever shape the decision has."""
    if decision.weights is not None:
        return decision.weights.expand(-1, length, -1)
    used = torch.tensor([float(name in decision.experts) for name in names(config)])
    return used.expand(1, length, -1)


def real(decision: Routing, config: Any, mask: Tensor) -> list[Tensor]:
    """Of the real tokens, `[length, E]` a text."""
    found = weights(decision, config, mask.shape[1]).expand(len(mask), -1, -1)
    return [row[kept] for row, kept in zip(found, mask.bool(), strict=True)]


@every
@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("training", [False, True])
def test_weights_are_shares(config: Any, task: Task, training: bool) -> None:
    """Float32, not negative, of the documented sum; one a token where tokens decide, one a text elsewhere."""
    hidden, mask = padded(texts())
    decision = make(config).train(training)(hidden, RoutingContext(task, mask))
    found = weights(decision, config, hidden.shape[1])
    low, high = SUMS.get(config.type, (1.0, 1.0))
    total = found.sum(-1)
    assert found.min() >= 0
    assert torch.all((total >= low - 1e-6) & (total <= high + 1e-6))
    if decision.weights is not None:
        assert decision.weights.dtype == torch.float32
        assert decision.weights.shape == (4, 9 if by_token(config) else 1, len(names(config)))
    assert set(decision.experts) <= set(names(config))
    assert all(loss.dim() == 0 and loss.item() >= 0 for loss in decision.losses.values())


@every
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("fill", [0.0, 50.0])
@torch.no_grad()
def test_neither_padding_nor_company_changes_a_decision(config: Any, side: str, fill: float) -> None:
    """Nor the router's own losses, which padding could dilute."""
    router, rows = make(config).eval(), texts()
    hidden, mask = padded(rows, side, fill)
    decision = router(hidden, RoutingContext(Task.RERANKING, mask))
    for row, found in zip(rows, real(decision, config, mask), strict=True):
        one, one_mask = padded([row], length=len(row))
        [alone] = real(router(one, RoutingContext(Task.RERANKING, one_mask)), config, one_mask)
        assert torch.allclose(found, alone, atol=1e-6)
    hidden, mask = padded(rows, "right", 0.0, length=7)
    for name, loss in router(hidden, RoutingContext(Task.RERANKING, mask)).losses.items():
        assert torch.allclose(decision.losses[name], loss, rtol=1e-5), name


@every
@torch.no_grad()
def test_decisions_are_made_in_float32(config: Any) -> None:
    """Bfloat16 states are taken as the numbers that they are, and nothing is rounded after that."""
    hidden, mask = padded(texts())
    router, low = make(config).eval(), hidden.to(torch.bfloat16)
    context = RoutingContext(Task.EMBEDDING, mask)
    found, expected = router(low, context), router(low.float(), context)
    if found.weights is not None:
        assert found.weights.dtype == torch.float32
        assert torch.equal(found.weights, expected.weights)
    assert found.experts == expected.experts
    assert all(parameter.dtype == torch.float32 for parameter in router.parameters())


@every
def test_without_noise_training_decides_as_inference_does(config: Any) -> None:
    """And inference decides the same twice, with all noise switched on."""
    hidden, mask = padded(texts())
    context, before = RoutingContext(Task.EMBEDDING, mask), hidden.clone()
    router = make(quiet(config))
    expected = weights(router.eval()(hidden, context), config, 9)
    assert torch.equal(weights(router.train()(hidden, context), config, 9), expected)
    noisy = make(config).eval()
    assert torch.equal(weights(noisy(hidden, context), config, 9), weights(noisy(hidden, context), config, 9))
    assert torch.equal(hidden, before)


@learned
@pytest.mark.parametrize("noise", [{"noise_epsilon": 0.3}, {"logit_noise": 1.0}, {"expert_dropout": 0.5}], ids=str)
def test_each_noise_acts_in_training_only(config: Any, noise: dict[str, float]) -> None:
    """On the router's input, never on what the projections read, which may be the same tensor."""
    hidden, mask = padded(texts())
    context, before = RoutingContext(Task.EMBEDDING, mask), hidden.clone()
    router = make(quiet(config).model_copy(update=noise), noise=0.1)
    torch.manual_seed(1)
    one, other = router.train()(hidden, context).weights, router(hidden, context).weights
    assert not torch.allclose(one, other)
    assert torch.equal(hidden, before)
    torch.manual_seed(1)
    assert torch.equal(router(hidden, context).weights, one)
    expected = make(quiet(config), noise=0.1).eval()(hidden, context).weights
    assert torch.equal(router.eval()(hidden, context).weights, expected)


def without(dropped: tuple[bool, ...], used: Tensor) -> Tensor:
    """Which of the experts that each token uses, `[T, E]`, it loses: none if it would lose them all."""
    lost = used & torch.tensor(dropped)
    return lost & (used & ~lost).any(-1, keepdim=True)


@learned
def test_dropout_takes_experts_from_whole_texts_and_never_all(config: Any) -> None:
    hidden, mask = padded(texts())
    context = RoutingContext(Task.EMBEDDING, mask)
    router = make(quiet(config).model_copy(update={"expert_dropout": 0.6}), noise=0.1)
    full = router.eval()(hidden, context).weights
    router.train()
    gone = torch.zeros(3)
    for _ in range(20):
        found = router(hidden, context).weights
        assert torch.allclose(found.sum(-1), full.sum(-1), atol=1e-5)
        lost = (found == 0) & (full > 0)
        gone += lost.any(1).sum(0)
        for text, used in zip(lost, full > 0, strict=True):
            assert any(torch.equal(without(dropped, used), text) for dropped in product([False, True], repeat=3))
    assert gone.all()


@learned
def test_a_floor_leaves_no_expert_without_weight(config: Any) -> None:
    hidden, mask = padded(texts())
    context = RoutingContext(Task.EMBEDDING, mask)
    router = make(quiet(config).model_copy(update={"weight_floor": 0.3}), noise=2.0)
    decision = router.train()(hidden, context)
    assert torch.allclose(decision.weights.sum(-1), decision.clean.sum(-1), atol=1e-6)
    assert torch.all(decision.weights >= 0.3 * decision.clean.sum(-1, keepdim=True) / 3 - 1e-6)
    assert torch.equal(router.eval()(hidden, context).weights, decision.clean)


@every
@torch.no_grad()
def test_later_tokens_change_earlier_decisions_of_whole_texts_only(config: Any) -> None:
    router = make(config).eval()
    one, other = padded([row.clone() for row in texts()[2:3]], length=7)[0], texts(1)[2]
    changed = one.clone()
    changed[0, 4:] = other[4:]
    mask = torch.ones(1, 7, dtype=torch.long)
    found, expected = (weights(router(x, RoutingContext(Task.EMBEDDING, mask)), config, 7) for x in (changed, one))
    if by_token(config):
        assert torch.equal(found[:, :4], expected[:, :4])
        assert not torch.equal(found[:, 4:], expected[:, 4:])
    else:
        assert torch.equal(found, expected) == (not isinstance(config, LearnedRouterConfig))


def build(config: Any, dtype: torch.dtype = torch.float32) -> FusedDecoder:
    """Three layers of width 32."""
    adapter = AdapterConfig(rank=4, alpha=8.0, experts=dict.fromkeys(names(config), 2), router=config)
    torch.manual_seed(0)
    decoder = build_decoder(tiny.causal_lm("qwen3", 420).to(dtype), adapter)
    assert isinstance(decoder, FusedDecoder)
    return decoder


def fresh(config: Any, *, routers: float, experts: float) -> FusedDecoder:
    """With noise on the routers and on the experts, whose B would otherwise be zero."""
    decoder = build(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.requires_grad:
                size = routers if ".routers." in name else experts
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return decoder


def context_of(batch: TokenBatch, task: Task) -> RoutingContext:
    return RoutingContext(task, batch.attention_mask)


@every
def test_gradients_reach_every_expert_and_a_fresh_router(config: Any) -> None:
    """From the task's loss alone. A router's own tensor need not be reached in every layer, but in one."""
    decoder = fresh(config, routers=0.0, experts=0.1).train()
    batch = tiny.batch(tiny.ids(LENGTHS))
    mask = batch.attention_mask.bool()
    for task in Task:
        states = decoder(batch, context=context_of(batch, task))[mask]
        (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(len(task)))).sum().backward()
    reached: dict[str, bool] = {}
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad and ".routers." not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        elif parameter.requires_grad:
            leaf = name.partition(".routers.")[2]
            reached[leaf] = reached.get(leaf, False) or (parameter.grad is not None and bool(parameter.grad.any()))
    assert all(reached.values()), reached
    assert bool(reached) == config.learned


@every
@torch.no_grad()
def test_hidden_states_stay_causal_unless_whole_texts_decide(config: Any) -> None:
    decoder = fresh(config, routers=0.5, experts=0.1).eval()
    one, other = tiny.ids([8, 8])
    batch = tiny.batch([one, [*one[:5], *other[5:]]])
    states = decoder(batch, context=context_of(batch, Task.EMBEDDING))
    assert not torch.equal(states[0, 5:], states[1, 5:])
    if getattr(config, "granularity", None) == "sequence":
        assert not torch.allclose(states[0, :5], states[1, :5], atol=1e-4)
    else:
        assert torch.equal(states[0, :5], states[1, :5])


@every
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_states_and_decisions_do_not_depend_on_the_batch(config: Any, padding: str) -> None:
    decoder, sequences = fresh(config, routers=0.5, experts=0.1).eval(), tiny.ids(LENGTHS)
    batch = tiny.batch(sequences, padding, 16)
    states = decoder(batch, context=context_of(batch, Task.RERANKING))
    for row, sequence in enumerate(sequences):
        single = tiny.batch([sequence])
        alone = decoder(single, context=context_of(single, Task.RERANKING))[0]
        assert tiny.relative(states[row][batch.attention_mask[row].bool()], alone) < 1e-5


@every
def test_what_kind_of_router_it_is_its_configuration_says(config: Any) -> None:
    """Each trait against what the router does."""
    hidden, mask = padded(texts())
    router = make(quiet(config)).eval()
    assert router.trainable == router.config.learned == config.learned
    if config.uses_pilots:
        return
    by_task = [weights(router(hidden, RoutingContext(task, mask)), config, 9) for task in Task]
    assert config.told_task == (not torch.equal(*by_task))
    other = weights(router(padded(texts(1))[0], RoutingContext(Task.EMBEDDING, mask)), config, 9)
    assert config.reads_text == (not torch.equal(by_task[0], other))
    assert config.mergeable != config.reads_text


@every
def test_every_layer_tells_its_decision(config: Any) -> None:
    decoder, batch = build(config).train(), tiny.batch(tiny.ids(LENGTHS))
    trace = RoutingTrace()
    decoder(batch, context=context_of(batch, Task.EMBEDDING), trace=trace)
    assert list(trace.decisions) == ["0", "1", "2"]
    assert trace.context is not None
    assert trace.context.task is Task.EMBEDDING
    for decision in trace.decisions.values():
        assert (decision.clean is not None) == isinstance(config, LearnedRouterConfig)
        if decision.clean is not None:
            assert decision.logits.shape == decision.clean.shape == decision.weights.shape


@every
def test_beside_a_bfloat16_base_routers_and_experts_are_float32(config: Any) -> None:
    decoder, trace = build(config, torch.bfloat16), RoutingTrace()
    batch = tiny.batch(tiny.ids(LENGTHS))
    states = decoder(batch, context=context_of(batch, Task.EMBEDDING), trace=trace)
    assert states.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in decoder.parameters() if parameter.requires_grad} == {torch.float32}
    assert {d.weights.dtype for d in trace.decisions.values() if d.weights is not None} <= {torch.float32}


@every
def test_the_budget_counts_the_parameters_that_are_built(config: Any) -> None:
    decoder, count = build(config), len(names(config))
    built = sum(p.numel() for n, p in decoder.named_parameters() if ".routers." in n)
    assert router_parameters(config, count, BaseShape(3, 1.0, 32, {"qkv": 32})) == built


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    batch = tiny.batch(tiny.ids(LENGTHS))
    with torch.inference_mode():
        return model.embed(batch), model.score(batch)


@pytest.mark.parametrize("member", [member for member in MEMBERS if member().learned], ids=lambda m: m().type)
def test_a_frozen_router_is_the_start_of_the_learned_one(member: type[Any], base: Path, tmp_path: Path) -> None:
    """The same numbers from the same seed, the same size, and no step moves it; a learned one says how far it moved."""
    settings = member().model_dump(mode="json")
    experts = dict.fromkeys(names(member()), 2)
    models = [
        tiny.build(base, adapter={"rank": 4, "experts": experts, "router": settings | {"frozen": frozen}}, seed=3)
        for frozen in (False, True)
    ]
    learned, frozen = models
    assert learned.state().keys() == frozen.state().keys()
    assert fingerprint(learned) == fingerprint(frozen)
    assert all(torch.equal(learned.state()[name], tensor) for name, tensor in frozen.state().items())
    batch = tiny.batch(tiny.ids(LENGTHS))
    for model in models:
        optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
        model.train()
        for _ in range(3):
            model.score(batch).square().sum().backward()
            optimizer.step()
            model.after_step()
    assert frozen.router_moved() == 0
    assert learned.router_moved() > 0.01
    save_model(learned, tmp_path / "final")
    recorded = json.loads((tmp_path / "final" / "unimoer.json").read_text())["router_moved"]
    assert recorded == learned.router_moved()
    assert load_model(tmp_path / "final", tiny.CPU).router_moved() is None


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member().type)
def test_what_is_loaded_is_bit_for_bit_what_was_saved(member: type[Any], base: Path, tmp_path: Path) -> None:
    """Buffers included: biases of loss-free balancing, frozen random weights, pilots."""
    config = member()
    experts = dict.fromkeys(names(config), 2)
    model = tiny.build(base, adapter={"rank": 4, "experts": experts, "router": config}, noise=0.2)
    generator = torch.Generator().manual_seed(7)
    for router in (module for module in model.modules() if isinstance(module, Router)):
        for buffer in router.buffers():
            buffer.add_(torch.randn(buffer.shape, generator=generator))
    if model.pilots is not None:
        vectors = torch.randn(5, 32, generator=generator)
        model.pilots.fit(torch.nn.functional.normalize(vectors, dim=1), torch.tensor([0, 1, 0, 1, 1]))
    expected, state = outputs(model), {name: tensor.clone() for name, tensor in model.state().items()}
    save_model(model, tmp_path / "final")
    torch.manual_seed(99)
    loaded = load_model(tmp_path / "final", tiny.CPU)
    assert loaded.config == model.config
    assert loaded.state().keys() == state.keys()
    assert all(torch.equal(loaded.state()[name], tensor) for name, tensor in state.items())
    assert all(torch.equal(found, wanted) for found, wanted in zip(outputs(loaded), expected, strict=True))


def test_an_unknown_router_is_one_line_with_the_nearest(experiment: Callable[..., dict[str, Any]]) -> None:
    arm = {"experts": {"a": 1, "b": 1}}
    with pytest.raises(UserError) as caught:
        tiny.parsed(experiment(custom_arms={"mine": {**arm, "router": {"type": "sparsgen"}}}, arms=["mine"]))
    assert str(caught.value) == "tiny: custom_arms.mine.router.type: unknown 'sparsgen'; did you mean 'sparsegen'?"
    with pytest.raises(UserError, match=r"custom_arms\.mine\.router\.type: required, but missing$"):
        tiny.parsed(experiment(custom_arms={"mine": {**arm, "router": {"k": 2}}}))
    with pytest.raises(UserError, match=r"router\.sparsegen\.granularty: unknown key; did you mean 'granularity'\?"):
        tiny.parsed(experiment(custom_arms={"mine": {**arm, "router": {"type": "sparsegen", "granularty": "token"}}}))
