"""Equal size: solved ranks against models that are really built, and against a known architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import tiny
from unimoer.config import ALL_PROJECTIONS, BUILTIN, AdapterConfig
from unimoer.config.arms import THREE_EXPERTS
from unimoer.config.router import HardConfig, SoftmaxConfig, SparsegenConfig
from unimoer.errors import UserError
from unimoer.model.budget import TOLERANCE, BaseShape, measure_base, router_parameters, shape_of, solve_ranks
from unimoer.studies.arms import arm_settings, count_parameters

Make = Callable[..., dict[str, Any]]
JOINT = [name for name, arm in BUILTIN.items() if len(arm.tasks) == 2]


def smollm2(layers: int = 12) -> BaseShape:
    """SmolLM2-135M, as in the quick tier."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    with torch.device("meta"):
        return shape_of(AutoModelForCausalLM.from_config(config), ALL_PROJECTIONS, layers)


def test_the_shape_is_that_of_the_architecture() -> None:
    attention = (576 + 576) + 2 * (576 + 192) + (576 + 576)
    mlp = 3 * (576 + 1536)
    inputs = {"qkv": 576, "o": 576, "gate_up": 576, "down": 1536}
    per_layer = 576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536 + 2 * 576
    # Vocabulary and output layer, and the last norm.
    whole = 12 * per_layer + 2 * 64 * 576 + 576
    assert smollm2() == BaseShape(12, attention + mlp, 576, inputs, whole)


def test_the_shape_of_a_model_on_disk_is_read_without_its_weights(base: Path) -> None:
    config = tiny.model_config(base, adapter={"rank": 4, "targets": ["v_proj", "down_proj"]}, layers=2)
    kept = AutoModelForCausalLM.from_pretrained(base).named_parameters()
    size = sum(parameter.numel() for name, parameter in kept if ".layers.2." not in name)
    assert measure_base(config) == BaseShape(2, (32 + 32) + (48 + 32), 32, {"qkv": 32, "down": 48}, size)
    with pytest.raises(UserError, match="has none of query"):
        measure_base(tiny.model_config(base, adapter={"targets": ["query"]}))


@pytest.mark.parametrize("arm", JOINT)
def test_every_joint_arm_has_the_size_of_one_lora(arm: str, experiment: Make) -> None:
    """Counted in the model that is built, routers included; and the plan's numbers are those."""
    config = tiny.parsed(experiment(model__adapter={"rank": 12, "alpha": 12.0}))
    _, described = arm_settings(config, arm)
    built = {"adapter_parameters": 0, "router_parameters": 0}
    for name, parameter in tiny.arm_model(config, arm).trainable().items():
        if not name.startswith("head."):
            built["router_parameters" if ".routers." in name else "adapter_parameters"] += parameter.numel()
    assert count_parameters(described) == (built["adapter_parameters"], built["router_parameters"])
    plain, _ = count_parameters(config.model)
    assert abs(sum(built.values()) / plain - 1) <= TOLERANCE


@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("arm", [name for name in JOINT if BUILTIN[name].router is not None])
def test_the_ranks_of_the_tiers_come_within_two_percent(arm: str, rank: int) -> None:
    definition, shape = BUILTIN[arm], smollm2()
    assert definition.experts is not None
    ranks = solve_ranks(
        AdapterConfig(rank=rank), definition.experts, definition.router, shape, rank_wise=definition.rank_wise
    )
    content = {"rank": rank, "experts": ranks, "router": {"type": "softmax"}, "rank_wise": definition.rank_wise}
    adapter = AdapterConfig.model_validate(content)
    units = [len(adapter.owners(layer)) for layer in range(12)]
    found = sum(sum(adapter.ranks(layer).values()) for layer in range(12)) * shape.rank_cost
    found += router_parameters(definition.router, units, shape)
    assert abs(found / (rank * 12 * shape.rank_cost) - 1) <= TOLERANCE
    # In the proportions asked for, to a rank in the whole model; no layer is without any expert.
    shares = definition.experts
    totals = {name: sum(adapter.ranks(layer)[name] for layer in range(12)) for name in shares}
    whole = sum(totals.values())
    for name, total in totals.items():
        assert abs(total - whole * shares[name] / sum(shares.values())) <= 1
        assert min(adapter.ranks(layer)[name] for layer in range(12)) >= 1


def test_what_does_not_divide_is_spread_evenly_over_the_depth() -> None:
    shape = BaseShape(5, 100.0, 10, {"qkv": 10})
    ranks = solve_ranks(AdapterConfig(rank=8), THREE_EXPERTS, SoftmaxConfig(), shape, rank_wise=False)
    # 40 ranks less 1.5 for routers: 38 by largest remainders of 9.5, 9.5 and 19.
    assert ranks == {"embedding": 2, "reranking": (1, 2, 2, 2, 2), "shared": (3, 4, 4, 4, 4)}
    assert solve_ranks(AdapterConfig(rank=8), THREE_EXPERTS, HardConfig(), shape, rank_wise=False) == {
        "embedding": 2,
        "reranking": 2,
        "shared": 4,
    }


def test_a_budget_that_is_too_small_says_so() -> None:
    small = BaseShape(3, 560.0, 32, {"qkv": 32})
    with pytest.raises(UserError, match=r"adapter\.rank: 2 is too small for 3 experts: 'embedding' would have less"):
        solve_ranks(AdapterConfig(rank=2), THREE_EXPERTS, HardConfig(), small, rank_wise=False)
    with pytest.raises(UserError, match=r"rank: 4 is too small: with 833 .* no closer than 4\.1% to the size of one L"):
        solve_ranks(AdapterConfig(rank=4), THREE_EXPERTS, SparsegenConfig(), small, rank_wise=False)
    # Routers alone cost more than the whole budget.
    wide = BaseShape(3, 10.0, 5000, {"qkv": 5000})
    with pytest.raises(UserError, match="is too small for 3 experts"):
        solve_ranks(AdapterConfig(rank=8), THREE_EXPERTS, SoftmaxConfig(), wide, rank_wise=False)


def test_routers_of_projections_are_counted_by_the_groups_that_have_an_adapter(experiment: Make) -> None:
    arm = {"experts": THREE_EXPERTS, "router": {"type": "sparsegen", "scope": "projection"}}
    adapter = {"rank": 24, "alpha": 24.0, "targets": ["v_proj", "gate_proj", "down_proj"]}
    config = tiny.parsed(experiment(model__adapter=adapter, custom_arms={"mine": arm}, arms=["mine"]))
    trainable = tiny.arm_model(config, "mine").trainable()
    routers = {name: p.numel() for name, p in trainable.items() if ".routers." in name}
    # One router a group and layer; the network for lambda once for each width of input.
    assert sum(name.endswith(".weight") for name in routers) == 9
    assert sum(name.endswith(".second_bias") for name in routers) == 2
    assert count_parameters(arm_settings(config, "mine")[1])[1] == sum(routers.values())
