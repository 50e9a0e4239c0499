"""Routed experts against models that know no routing: one LoRA, merged weights, two separate specialists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import tiny
from unimoer.config import AdapterConfig
from unimoer.config.router import SoftmaxConfig
from unimoer.losses.balance import z_loss
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.decoder import FusedDecoder, build_decoder
from unimoer.model.routers import Router, RouterFactory
from unimoer.model.routing import RoutingContext, RoutingTrace
from unimoer.types import Task, TokenBatch

TOLERANCE = 1e-5
"""Of three layers in float32, whose sums are taken in another order; see test_decoder.py."""
PLACES = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
THREE = {"embedding": 2, "reranking": 2, "shared": 4}
Make = Callable[..., dict[str, Any]]


def build(base: Path, *, noise: float = 0.1, checkpointing: bool = False, **settings: Any) -> FusedDecoder:
    """Of the tiny Qwen3; experts and routers are not neutral."""
    adapter = AdapterConfig.model_validate({"rank": 8, "alpha": 8.0} | settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    decoder = build_decoder(model, adapter, checkpointing=checkpointing)
    assert isinstance(decoder, FusedDecoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.requires_grad:
                size = 5 * noise if ".routers." in name else noise
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return decoder.eval()


def run(
    decoder: FusedDecoder, batch: TokenBatch, task: Task = Task.EMBEDDING, trace: RoutingTrace | None = None
) -> Tensor:
    """States of the real tokens, `[tokens, d]`."""
    states = decoder(batch, context=RoutingContext(task, batch.attention_mask), trace=trace)
    return states[batch.attention_mask.bool()]


def adapters(decoder: FusedDecoder) -> list[MoELoRALinear]:
    return [module for module in decoder.modules() if isinstance(module, MoELoRALinear)]


def joined(module: MoELoRALinear, name: str, of: Callable[[nn.Parameter], Tensor]) -> tuple[Tensor, Tensor]:
    """All experts' A and B of one projection as those of one LoRA; `of` is the parameter itself or its gradient."""
    place = module.targets.index(name)
    start = sum(module.sizes[module.names.index(other)] for other in module.targets[:place])
    size = module.sizes[module.names.index(name)]
    a = [of(module.a[expert])[place * rank : (place + 1) * rank] for expert, rank in module.ranks.items()]
    return torch.cat(a), torch.cat([of(b)[start : start + size] for b in module.b.values()], dim=1)


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("targets", [("q_proj", "v_proj", "down_proj"), tuple(AdapterConfig().targets)], ids=len)
def test_uniform_routing_is_one_lora_of_the_total_rank(targets: tuple[str, ...], base: Path) -> None:
    """With the default gain: outputs, and gradients of every expert."""
    routed = build(base, targets=targets, experts=THREE, router={"type": "uniform"})
    plain = build(base, targets=targets)
    with torch.no_grad():
        for one, other in zip(adapters(plain), adapters(routed), strict=True):
            for name in one.targets:
                for target, source in zip(
                    one.lora(name, "shared")[:2], joined(other, name, Tensor.detach), strict=True
                ):
                    target.copy_(source)
    batch = tiny.batch(tiny.ids([9, 4, 6]), "left")
    weights = torch.randn(19, 32, generator=torch.Generator().manual_seed(3))
    found, expected = run(routed, batch), run(plain, batch)
    assert tiny.relative(found, expected) < TOLERANCE
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(adapters(plain), adapters(routed), strict=True):
        for name in one.targets:
            for ours, theirs in zip(joined(other, name, gradient), joined(one, name, gradient), strict=True):
                assert tiny.relative(ours, theirs) < 2 * TOLERANCE, name


@pytest.mark.parametrize("router", ["softmax", "sparsegen", "topk", "hierarchical", "uniform", "random_frozen"])
def test_equal_experts_make_the_router_irrelevant(router: str, base: Path) -> None:
    """With gain 1 and weights that add up to 1, whatever they are."""
    routed = build(base, experts=dict.fromkeys(THREE, 3), router={"type": router}, gain=1.0)
    single = build(base, experts={"shared": 3})
    with torch.no_grad():
        for one, other in zip(adapters(single), adapters(routed), strict=True):
            for expert in THREE:
                other.a[expert].copy_(one.a["shared"])
                other.b[expert].copy_(one.b["shared"])
    batch = tiny.batch(tiny.ids([9, 4, 6]))
    assert tiny.relative(run(routed, batch), run(single, batch)) < TOLERANCE


ROUTED: dict[str, dict[str, Any]] = {
    "layer": {"experts": THREE, "router": {"type": "softmax"}},
    "projection": {"experts": THREE, "router": {"type": "softmax", "scope": "projection"}},
    "projection, some targets": {
        "experts": THREE,
        "router": {"type": "sparsegen", "scope": "projection"},
        "targets": ("k_proj", "up_proj"),
    },
    "rank-wise": {"experts": {"one": 2, "two": 3}, "router": {"type": "topk", "k": 2}, "rank_wise": True},
    "rank-wise projections": {
        "experts": {"shared": 4},
        "router": {"type": "softmax", "scope": "projection"},
        "rank_wise": True,
        "gain": 1.5,
    },
    "layer-wise experts": {
        "experts": {"embedding": (2, 0, 3), "reranking": (0, 3, 1), "shared": (0, 2, 4)},
        "router": {"type": "softmax"},
    },
    "layer-wise task experts": {
        "experts": {"embedding": (2, 0, 3), "reranking": (0, 3, 1), "shared": 2},
        "router": {"type": "hard_shared"},
    },
}


def merged(decoder: FusedDecoder, trace: RoutingTrace, body: nn.Module) -> dict[str, Tensor]:
    """`W + s sum_e w_e B_e A_e` of one text, by its name in transformers, from the decisions of its forward pass."""
    found = {}
    for path, module in decoder.named_modules():
        if not isinstance(module, MoELoRALinear):
            continue
        _, index, group = path.split(".")
        decision = trace.decisions.get(f"{index}.{group}", trace.decisions.get(index))
        assert decision is not None or not module.targets
        for name in module.targets:
            key = f"layers.{index}.{PLACES[group]}.{name}.weight"
            found[key] = body.get_parameter(key).clone()
            units = iter(range(99))
            for expert in decision.experts:
                if expert not in module.ranks:
                    continue
                a, b, scale = module.lora(name, expert)
                assert scale == 1.0
                if decision.weights is None:
                    found[key] += b @ a
                    continue
                gain = module.gain or decision.weights.shape[-1]
                if module.rank_wise:
                    shares = torch.stack([decision.weights[0, 0, next(units)] for _ in a])
                    found[key] += gain * b * shares @ a
                else:
                    found[key] += gain * decision.weights[0, 0, next(units)] * b @ a
    return found


@pytest.mark.parametrize("variant", list(ROUTED))
@torch.no_grad()
def test_a_routed_text_is_one_of_merged_weights_in_transformers(variant: str, base: Path) -> None:
    """One text at a time: its decisions are then the same for all of its tokens."""
    decoder = build(base, **ROUTED[variant])
    body = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().base_model
    for task in Task:
        for sequence in tiny.ids([9, 4]):
            batch, trace = tiny.batch([sequence]), RoutingTrace()
            found = run(decoder, batch, task, trace)
            expected = torch.func.functional_call(
                body, merged(decoder, trace, body), kwargs={"input_ids": batch.input_ids, "use_cache": False}
            ).last_hidden_state[0]
            assert tiny.relative(found, expected) < TOLERANCE
            assert tiny.relative(body(input_ids=batch.input_ids).last_hidden_state[0], expected) > 1e-2


def read(hidden: Tensor, mask: Tensor, granularity: str) -> Tensor:
    """What each decision reads, token by token and text by text, in float64: `[B, T or 1, d]`."""
    texts = []
    normal = hidden.double() / hidden.double().square().mean(-1, keepdim=True).sqrt()
    for row, real in zip(normal, mask.bool(), strict=True):
        means = torch.stack(
            [row[: end + 1][real[: end + 1]].sum(0) / max(1, int(real[: end + 1].sum())) for end in range(len(row))]
        )
        texts.append({"token": row, "causal": means, "sequence": means[-1:]}[granularity])
    return torch.stack(texts)


@pytest.mark.parametrize("granularity", ["sequence", "causal", "token"])
def test_a_decision_is_the_softmax_of_a_linear_map_of_what_it_reads(granularity: str) -> None:
    """Of unit size, centred and scaled. Its gradient reaches the states: earlier layers learn what routing needs."""
    torch.manual_seed(0)
    router = RouterFactory(SoftmaxConfig(granularity=granularity, temperature=0.7), 1)("abc", 3, 16, 0).eval()
    tiny.stir(router, 0.3)
    centre, scale = router.reading.centre.normal_(), router.reading.scale.uniform_(0.5, 2)
    hidden, twin = torch.randn(3, 6, 16, requires_grad=True), router.weight.detach().double().requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    found = router(hidden, RoutingContext(Task.EMBEDDING, mask)).weights
    expected = ((read(hidden, mask, granularity) - centre) * scale @ twin.t() / 0.7).softmax(-1)
    real = mask.bool() if granularity != "sequence" else torch.ones(3, 1, dtype=torch.bool)
    assert found.shape == expected.shape
    assert tiny.relative(found[real], expected[real]) < 1e-6
    upstream = torch.randn(int(real.sum()), 3)
    ours = torch.autograd.grad((found[real] * upstream).sum(), [hidden, router.weight])
    theirs = torch.autograd.grad((expected[real] * upstream).sum(), [hidden, twin])
    for one, other in zip(ours, theirs, strict=True):
        assert tiny.relative(one, other) < 5e-6


def test_routers_stand_where_there_is_something_to_route(base: Path) -> None:
    """One a group of adapted projections, or one a layer; none where nothing is adapted."""

    def names(**settings: Any) -> list[str]:
        trace = RoutingTrace()
        run(build(base, experts=THREE, **settings), tiny.batch(tiny.ids([4])), trace=trace)
        return list(trace.decisions)[: len(trace.decisions) // 3]

    assert names(router={"type": "softmax"}) == ["0"]
    assert names(router={"type": "softmax"}, targets=("down_proj",)) == ["0"]
    by_group = {"type": "softmax", "scope": "projection"}
    assert names(router=by_group) == ["0.qkv", "0.o", "0.gate_up", "0.down"]
    assert names(router=by_group, targets=("v_proj", "down_proj")) == ["0.qkv", "0.down"]


@pytest.mark.parametrize(
    "router",
    [
        {"type": "sparsegen", "granularity": "token", "sparsity_loss_weight": 0.1, "max_active": 1},
        {"type": "topk", "bias_rate": 0.1, "granularity": "causal"},
        {"type": "hierarchical", "logit_noise": 0.5},
        {"type": "softmax", "scope": "projection"},
    ],
    ids=lambda router: router["type"],
)
def test_checkpointed_layers_decide_the_same_again(router: dict[str, Any], base: Path) -> None:
    """All randomness is on; a layer's losses count once, and so does the load of loss-free balancing."""
    results = []
    for checkpointing in (False, True):
        settings = {**router, "expert_dropout": 0.3, "noise_epsilon": 0.1}
        decoder = build(base, experts=THREE, router=settings, dropout=0.3, checkpointing=checkpointing).train()
        batch, trace = tiny.batch(tiny.ids([9, 4])), RoutingTrace()
        torch.manual_seed(5)
        loss = run(decoder, batch, trace=trace).square().sum()
        for decision in trace.decisions.values():
            loss = loss + z_loss(decision.logits, batch.attention_mask) + sum(decision.losses.values())
        loss.backward()
        for module in decoder.modules():
            if isinstance(module, Router):
                module.after_step()
        decisions = {name: decision.weights.detach() for name, decision in trace.decisions.items()}
        results.append((decisions, dict(decoder.named_parameters()), dict(decoder.named_buffers())))
    (one, plain, buffers), (other, recomputed, moved) = results
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name, parameter in plain.items():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.equal(parameter.grad, recomputed[name].grad), name
    assert all(torch.equal(buffer, moved[name]) for name, buffer in buffers.items())
    assert router["type"] != "topk" or buffers["layers.0.routers.layer.bias"].any()


def test_hard_switching_trains_two_specialists(experiment: Make, tmp_path: Path) -> None:
    """Each expert ends where its specialist ends, bit for bit: the steps of the other task do not exist for it.

    With momentum and weight decay, which would move an expert whose gradient is zero rather than missing.
    """
    optimizer = {"lr": 1e-2, "schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.3, "max_grad_norm": 1e9}
    common = {"training__optimizer": optimizer, "training__probe__every": 0, "training__reranking__steps": 8}
    half = tiny.parsed(experiment(model__adapter={"rank": 4, "alpha": 4.0}, **common))
    both = tiny.parsed(experiment(model__adapter={"rank": 8, "alpha": 8.0}, **common))
    joint = tiny.arm_model(both, "hard_switch")
    assert joint.config.adapter.experts == {"embedding": 4, "reranking": 4}
    arms = {"embedding": "emb_only", "reranking": "rank_only"}
    start = tiny.arm_model(half, "emb_only").state()
    with torch.no_grad():
        for name, parameter in joint.state().items():
            # All arms of a seed start from the same head; experts are drawn one after the other.
            *path, last = name.split(".")
            parameter.copy_(start[".".join([*path, "shared"]) if last in arms else name])
    trained = tiny.train_arm(both, "hard_switch", tmp_path / "both", model=joint).model.state()
    for expert, arm in arms.items():
        specialist = tiny.train_arm(half, arm, tmp_path / arm).model.state()
        moved = 0
        for name, parameter in specialist.items():
            if not name.startswith("head."):
                assert torch.equal(trained[name.replace("shared", expert)], parameter), name
                moved += not torch.equal(parameter, start[name])
            elif arm == "rank_only":
                assert torch.equal(trained[name], parameter), name
        assert moved == 24
