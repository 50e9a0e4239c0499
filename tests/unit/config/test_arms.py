"""What an arm is made of, and what of it names a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import tiny
from unimoer.config import BUILTIN, ArmConfig, RouterConfig
from unimoer.config.base import Strict, changed
from unimoer.config.gradients import FAMOConfig, GradientConfig, SumConfig
from unimoer.errors import UserError
from unimoer.types import Schedule, Task

ROUTER = {"type": "softmax"}
EXPERTS = {"a": 1, "b": 1}
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make() -> Make:
    """A whole configuration as plain data; its files need not exist."""

    def content(**changes: Any) -> dict[str, Any]:
        return tiny.experiment(Path("base"), {"kitchen": Path("data")}, **changes)

    return content


def test_every_schedule_and_every_router_has_an_arm() -> None:
    """And so has every way to combine gradients."""
    assert {arm.schedule for arm in BUILTIN.values()} == set(Schedule)
    assert {arm.tasks for arm in BUILTIN.values()} == {(Task.EMBEDDING,), (Task.RERANKING,), tuple(Task)}
    routers = {member.model_fields["type"].default for member in get_args(get_args(RouterConfig)[0])}
    assert {arm.router.type for arm in BUILTIN.values() if arm.router is not None} == routers
    methods = {member.model_fields["type"].default for member in get_args(get_args(GradientConfig)[0])}
    chosen = {arm.set.get("training.gradients.type", "sum") for arm in BUILTIN.values()}
    assert chosen == methods


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": ["embedding"], "experts": EXPERTS, "router": ROUTER}, "an arm for embedding alone trains one LoRA"),
        ({"tasks": ["reranking"], "experts": EXPERTS, "router": ROUTER}, "an arm for reranking alone trains one LoRA"),
        ({"tasks": ["reranking"], "schedule": "mixed"}, "schedule: 'mixed' orders two tasks, and this arm has one"),
        ({"tasks": ["embedding", "embedding"]}, "tasks: each may be named once"),
        ({"tasks": []}, "tasks"),
        ({"router": ROUTER}, "experts and router belong together"),
        ({"experts": EXPERTS}, "experts and router belong together"),
        ({"set": {"data.domains": 1}}, "set: 'data.domains' is not of one arm"),
        ({"set": {"seeds": [1]}}, "set: 'seeds' is not of one arm"),
        ({"set": {"model.reranking.head": "cosine"}}, "set: 'model.reranking.head' is no diff"),
        ({"set": {"model.reranking": {}}}, "set: 'model.reranking.head' is no difference"),
        ({"set": {"training.embedding": {"steps": 9}}}, "set: 'training.embedding.steps' would give .* other examples"),
        ({"set": {"training.optimizer": {"accumulation": 2}}}, "set: 'training.optimizer.accumulation' would give"),
        (
            {"set": {"model.prompts.max_document_tokens": 256}},
            "set: 'model.prompts.max_document_tokens' would let this",
        ),
        (
            {"set": {"model.prompts": {"pair": "{query}{document}"}}},
            "set: 'model.prompts.pair' would let this arm read",
        ),
        (
            {"set": {"model.dtype": "float32"}},
            "set: 'model.dtype' would let this arm read other texts, or another base",
        ),
        ({"schedule": "joint"}, "schedule"),
        ({"mode": "joint_single"}, "mode"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ArmConfig.model_validate(content)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_experts_can_be_trained_in_any_order(schedule: Schedule) -> None:
    arm = ArmConfig.model_validate({"schedule": schedule, "experts": EXPERTS, "router": ROUTER})
    assert arm.router is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joint_moe", "custom_arms: 'joint_moe' is taken; choose another name"),
        ("untrained", "custom_arms: 'untrained' is taken"),
        ("bm25", "custom_arms: 'bm25' is taken"),
        ("random", "custom_arms: 'random' is taken"),
        ("mine_start", "custom_arms: 'mine_start' is taken"),
        ("My-Arm", "custom_arms: 'My-Arm': lower-case letters"),
        ("a/b", "lower-case letters"),
    ],
)
def test_a_custom_arm_has_a_name_of_its_own(name: str, message: str, make: Make) -> None:
    with pytest.raises(UserError, match=message):
        tiny.parsed(make(custom_arms={name: {}}))


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
