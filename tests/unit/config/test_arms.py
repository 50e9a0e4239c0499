"""What an arm is made of, and what of it names a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import tiny
from unimoer.config import BUILTIN, ArmConfig, RouterConfig, TrainingConfig
from unimoer.config.base import Strict, changed
from unimoer.config.gradients import FAMOConfig, GradientConfig, SumConfig
from unimoer.errors import UserError
from unimoer.types import TrainingMode

ROUTER = {"type": "softmax"}
EXPERTS = {"a": 1, "b": 1}
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make() -> Make:
    """A whole configuration as plain data; its files need not exist."""

    def content(**changes: Any) -> dict[str, Any]:
        return tiny.experiment(Path("base"), {"kitchen": Path("data")}, **changes)

    return content


def test_every_mode_and_every_router_has_an_arm() -> None:
    """And so has every way to combine gradients."""
    assert {arm.mode for arm in BUILTIN.values()} == set(TrainingMode)
    routers = {member.model_fields["type"].default for member in get_args(get_args(RouterConfig)[0])}
    assert {arm.router.type for arm in BUILTIN.values() if arm.router is not None} == routers
    methods = {member.model_fields["type"].default for member in get_args(get_args(GradientConfig)[0])}
    chosen = {arm.set.get("training.gradients.type", "sum") for arm in BUILTIN.values()}
    assert chosen == methods


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mode": "joint_moe"}, "router: mode 'joint_moe' needs one"),
        ({"mode": "emb_only", "experts": EXPERTS, "router": ROUTER}, "mode 'emb_only' trains one LoRA; use joint_moe"),
        ({"mode": "rank_only", "experts": EXPERTS, "router": ROUTER}, "mode 'rank_only' trains one LoRA"),
        ({"mode": "joint_single", "experts": EXPERTS, "router": ROUTER}, "mode 'joint_single' trains one LoRA"),
        ({"mode": "joint_moe", "router": ROUTER}, "experts and router belong together"),
        ({"mode": "joint_mixed", "experts": EXPERTS}, "experts and router belong together"),
        ({"mode": "joint_mixed", "set": {"data.domains": 1}}, "set: 'data.domains' is not of one arm"),
        ({"mode": "joint_mixed", "set": {"seeds": [1]}}, "set: 'seeds' is not of one arm"),
        ({"mode": "joint_mixed", "set": {"model.reranking.head": "cosine"}}, "set: 'model.reranking.head' is no diff"),
        ({"mode": "joint_mixed", "set": {"model.reranking": {}}}, "set: 'model.reranking.head' is no difference"),
        ({"mode": "joint"}, "mode"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ArmConfig.model_validate(content)


@pytest.mark.parametrize("mode", ["joint_moe", "joint_mixed", "joint_staged"])
def test_experts_can_be_trained_in_three_ways(mode: str) -> None:
    arm = ArmConfig.model_validate({"mode": mode, "experts": EXPERTS, "router": ROUTER})
    assert arm.router is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joint_moe", "custom_arms: 'joint_moe' is taken; choose another name"),
        ("untrained", "custom_arms: 'untrained' is taken"),
        ("bm25", "custom_arms: 'bm25' is taken"),
        ("My-Arm", "custom_arms: 'My-Arm': lower-case letters"),
        ("a/b", "lower-case letters"),
    ],
)
def test_a_custom_arm_has_a_name_of_its_own(name: str, message: str, make: Make) -> None:
    with pytest.raises(UserError, match=message):
        tiny.parsed(make(custom_arms={name: {"mode": "joint_single"}}))


def test_experts_are_defined_by_arms_alone(make: Make) -> None:
    """In the common part they would make all arms routed, the specialists too."""
    adapter = {"rank": 4, "experts": {"a": 2, "b": 2}, "router": ROUTER}
    with pytest.raises(UserError, match=r"model\.adapter: arms bring their own experts and router"):
        tiny.parsed(make(model__adapter=adapter))


class One(Strict):
    kept: int
    choice: SumConfig | FAMOConfig = SumConfig()
    inner: tuple[int, ...] = (1, 2)
    table: dict[str, int] = {}  # noqa: RUF012


def test_only_what_is_not_the_default_counts() -> None:
    assert changed(One(kept=1)) == {"kept": 1}
    assert changed(One(kept=1, inner=(1, 2), table={})) == {"kept": 1}
    assert changed(One(kept=1, inner=(2,), table={"x": 3})) == {"kept": 1, "inner": [2], "table": {"x": 3}}
    # A member at its defaults is still another member.
    assert changed(One(kept=1, choice=FAMOConfig())) == {"kept": 1, "choice": {"type": "famo"}}
    assert changed(One(kept=1, choice=FAMOConfig(lr=0.1))) == {"kept": 1, "choice": {"type": "famo", "lr": 0.1}}


class LaterTraining(TrainingConfig):
    """As a later version might have it."""

    novelty: int = 3


def test_a_setting_that_is_added_later_leaves_finished_runs_what_they_are(make: Make) -> None:
    config = tiny.parsed(make())
    found = [
        config.model_copy(update={"training": LaterTraining(**config.training.model_dump(), **more)})
        for more in ({}, {"novelty": 3}, {"novelty": 4})
    ]
    hashes = [config.run_hash("joint_moe", 1), *(later.run_hash("joint_moe", 1) for later in found)]
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[3] != hashes[0]


def custom(make: Make, **changes: Any) -> str:
    arm: dict[str, Any] = {"mode": "joint_moe", "experts": {"embedding": 1, "reranking": 1, "shared": 2}}
    return tiny.parsed(make(custom_arms={"mine": {**arm, "router": ROUTER, **changes}})).run_hash("mine", 1)


def test_the_definition_of_an_arm_is_part_of_its_runs(make: Make) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"router": {"type": "uniform"}},
        {"router": {"type": "random_frozen"}},
        {"router": {"type": "softmax", "granularity": "token"}},
        {"router": {"type": "softmax", "noise_epsilon": 0.0}},
        {"experts": {"embedding": 1, "reranking": 1, "shared": 1}},
        {"mode": "joint_mixed"},
        {"rank_wise": True},
        {"set": {"training.optimizer.lr": 0.1}},
        {"set": {"training.gradients.type": "pcgrad"}},
    ]
    assert len({custom(make, **change) for change in changes}) == len(changes)
    assert custom(make, router={"type": "softmax", "granularity": "sequence"}) == custom(make)


def test_arms_and_names_of_other_arms_are_not(make: Make) -> None:
    config = tiny.parsed(make())
    more = tiny.parsed(make(custom_arms={"mine": {"mode": "joint_single"}}, arms=["mine", "joint_moe"]))
    assert config.run_hash("joint_moe", 1) == more.run_hash("joint_moe", 1)
    assert len({config.run_hash(arm, 1) for arm in BUILTIN}) == len(BUILTIN)
