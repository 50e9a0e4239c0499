"""Which experts, ranks and routers fit together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from unimoer.config import AdapterConfig

TASKS = {"embedding": 2, "reranking": 2}
THREE = {**TASKS, "shared": 4}


def make(**content: Any) -> AdapterConfig:
    return AdapterConfig.model_validate(content)


def test_plain_lora_is_the_one_shared_expert() -> None:
    config = make(rank=6)
    assert not config.is_routed
    assert config.layers is None
    assert config.ranks(0) == config.ranks(99) == {"shared": 6}
    assert config.owners(0) == ["shared"]


def test_ranks_may_be_listed_by_layer_and_zero_leaves_an_expert_out() -> None:
    config = make(experts={"a": (2, 0, 1), "b": 3, "c": (0, 0, 2)}, router={"type": "softmax"})
    assert config.layers == 3
    assert [config.ranks(layer) for layer in range(3)] == [{"a": 2, "b": 3}, {"b": 3}, {"a": 1, "b": 3, "c": 2}]
    assert [config.owners(layer) for layer in range(3)] == [["a", "b"], ["b"], ["a", "b", "c"]]


def test_rank_wise_units_belong_to_their_experts() -> None:
    config = make(experts={"a": 2, "b": (1, 3)}, router={"type": "topk", "k": 3}, rank_wise=True)
    assert config.owners(0) == ["a", "a", "b"]
    assert config.owners(1) == ["a", "a", "b", "b", "b"]
    assert make(rank=4, router={"type": "softmax"}, rank_wise=True).owners(0) == ["shared"] * 4


FITS: list[dict[str, Any]] = [
    {"experts": {"only": 4}},
    {"experts": {"only": (4, 2)}},
    {"experts": THREE, "router": {"type": "topk", "k": 3}},
    {"experts": THREE, "router": {"type": "hard"}},
    {"experts": {"embedding": (2, 0), "reranking": (0, 2)}, "router": {"type": "hard"}},
    {"experts": {"embedding": (2, 1), "reranking": (1, 2)}, "router": {"type": "similarity"}},
    {"experts": THREE, "router": {"type": "hard_shared"}},
    {"rank": 8, "router": {"type": "topk", "k": 8}, "rank_wise": True},
    {"experts": {"shared": (8, 9)}, "router": {"type": "topk", "k": 8}, "rank_wise": True},
    {"experts": {"a": (2, 0), "b": (2, 2), "c": (2, 0)}, "router": {"type": "topk", "k": 3}},
    {"experts": THREE, "router": {"type": "sparsegen", "sparsity_loss_weight": 0.1, "max_active": 2}},
    {"experts": TASKS, "router": {"type": "sparsegen", "max_active": 2}},
]


@pytest.mark.parametrize("content", FITS, ids=str)
def test_what_fits_survives_a_round_trip(content: dict[str, Any]) -> None:
    config = make(**content)
    assert make(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"experts": {}}, "name at least one expert"),
        ({"experts": {"a": (1, 2), "b": (1, 2, 3)}}, r"ranks are listed for different numbers of layers: \[2, 3\]"),
        ({"experts": {"a": (1, 0), "b": (2, 0)}}, "layer 1 has no expert: every rank is 0 there"),
        ({"experts": {"a": 0}}, "layer 0 has no expert"),
        ({"experts": {"a": -1}}, "greater than or equal to 0"),
        ({"experts": {"a": (1, -1)}}, "greater than or equal to 0"),
        ({"experts": THREE}, r"router: 3 experts \(embedding, reranking, shared\) need a router"),
        ({"rank": 8, "rank_wise": True}, "rank_wise experts need a router"),
        (
            {"experts": {"embedding": 2, "x": 2}, "router": {"type": "hard"}},
            "needs an expert 'reranking'; there are emb",
        ),
        ({"experts": TASKS, "router": {"type": "hard_shared"}}, "'hard_shared' needs an expert 'shared'"),
        ({"router": {"type": "similarity"}}, "'similarity' needs an expert 'embedding'; there are shared"),
        ({"experts": THREE, "router": {"type": "hard"}, "rank_wise": True}, "'hard' weighs whole experts"),
        (
            {"experts": {"embedding": (2, 0), "reranking": 2}, "router": {"type": "similarity"}},
            "'similarity' needs every expert in every layer: no rank may be 0",
        ),
        ({"router": {"type": "softmax"}}, "'softmax' has one expert only, and nothing to decide"),
        ({"rank": 1, "router": {"type": "softmax"}, "rank_wise": True}, "has one expert only"),
        ({"experts": {"a": (2, 0), "b": (0, 2)}, "router": {"type": "softmax"}}, "has one expert only"),
        ({"experts": TASKS, "router": {"type": "topk", "k": 3}}, "router.k: 3 of 2 experts"),
        (
            {"experts": {"a": (1, 1), "b": (1, 1), "c": (1, 0)}, "router": {"type": "topk", "k": 3}},
            "router.k: 3 of 2 experts",
        ),
        (
            {"experts": {"shared": (8, 7)}, "router": {"type": "topk", "k": 8}, "rank_wise": True},
            "router.k: 8 of 7 ranks",
        ),
        (
            {"experts": TASKS, "router": {"type": "sparsegen", "sparsity_loss_weight": 0.1, "max_active": 2}},
            "router.max_active: 2 of 2 experts is no sparsity",
        ),
        (
            {"experts": THREE, "router": {"type": "softmax", "task_prior": 1.0}},
            "router.task_prior: only a router that is task_aware",
        ),
        (
            {"experts": {"embedding": 2, "x": 2}, "router": {"type": "topk", "task_aware": True, "task_prior": 1.0}},
            "router.task_prior of 'topk' needs an expert 'reranking'",
        ),
        (
            {
                "experts": {"embedding": 2, "reranking": 2},
                "router": {"type": "topk", "task_aware": True, "task_prior": 1.0},
                "rank_wise": True,
            },
            "weighs whole experts",
        ),
        ({"gain": 0}, "greater than 0"),
        ({"targets": []}, "at least 1 item"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**content)
