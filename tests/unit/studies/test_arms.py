"""What an arm changes in the configuration of its experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tiny
from unimoer.config import BUILTIN, parse_config
from unimoer.config.gradients import GradNormConfig, PCGradConfig
from unimoer.config.router import HardConfig
from unimoer.errors import UserError
from unimoer.studies.arms import arm_settings, plan_arm
from unimoer.studies.planning import train_spec
from unimoer.types import Schedule, Task

Make = Callable[..., dict[str, Any]]


def _key(config: Any, arm: str) -> str:
    return train_spec(config, arm, 1, tiny.CPU).key


ADAPTER = {"rank": 12, "alpha": 12.0, "dropout": 0.1}


def test_every_built_in_arm_can_be_planned(experiment: Make) -> None:
    """With what the plan says about it."""
    config = tiny.parsed(experiment(arms=list(BUILTIN), model__adapter=ADAPTER))
    about = {name: plan_arm(config, name) for name in BUILTIN}
    for name, plan in about.items():
        assert tuple(plan.tasks) == BUILTIN[name].tasks
        assert plan.schedule is BUILTIN[name].schedule
        assert plan.steps.keys() == set(plan.tasks)
    assert about["moe_token"].granularity == "token"
    assert about["hard_switch"].experts == {"embedding": 6, "reranking": 6}
    assert about["joint_single"].experts == {"shared": 12}
    assert about["famo"].gradients == "famo"
    assert [about[name].learned for name in ("joint_moe", "random_frozen", "uniform", "hard_switch")] == [
        True,
        False,
        False,
        False,
    ]
    assert [about[name].told_task for name in ("moe_task", "joint_moe", "hard_switch")] == [True, False, True]


def test_an_arm_has_its_experts_and_router_and_the_rest_of_the_adapter(experiment: Make) -> None:
    config = tiny.parsed(experiment(model__adapter=ADAPTER))
    settings, model = arm_settings(config, "hard_switch")
    assert settings == config.training
    assert model.adapter.router == HardConfig()
    assert (model.adapter.rank, model.adapter.alpha, model.adapter.dropout) == (12, 12.0, 0.1)
    assert model.model_copy(update={"adapter": config.model.adapter}) == config.model
    assert arm_settings(config, "joint_single") == (config.training, config.model)


def custom(experiment: Make, changes: dict[str, Any], **more: Any) -> Any:
    arm = {"schedule": "mixed", "set": changes}
    return tiny.parsed(experiment(model__adapter=ADAPTER, custom_arms={"mine": arm}, arms=["mine"], **more))


def test_other_settings_are_changed_by_dotted_keys(experiment: Make) -> None:
    config = custom(experiment, {"training.optimizer.lr": 0.5, "model.embedding.attention": "bidirectional"})
    settings, model = arm_settings(config, "mine")
    assert settings.optimizer.lr == 0.5
    assert settings.optimizer.weight_decay == config.training.optimizer.weight_decay
    assert model.embedding.attention == "bidirectional"
    assert config.training.optimizer.lr == 1e-2


@pytest.mark.parametrize("changes", [{"training.gradients.type": "pcgrad"}, {"training.gradients": {"type": "pcgrad"}}])
def test_another_member_of_a_union_takes_nothing_over(changes: dict[str, Any], experiment: Make) -> None:
    gradients = {"type": "gradnorm", "alpha": 0.7}
    config = custom(experiment, changes, training__gradients=gradients)
    assert config.training.gradients == GradNormConfig(alpha=0.7)
    assert arm_settings(config, "mine")[0].gradients == PCGradConfig()


def test_its_fields_can_follow_the_type(experiment: Make) -> None:
    config = custom(experiment, {"training.gradients.type": "gradnorm", "training.gradients.alpha": 0.5})
    assert arm_settings(config, "mine")[0].gradients == GradNormConfig(alpha=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.optimizer.learning_rate": 1}, "arm 'mine': training.optimizer.learning_rate: unknown key"),
        (
            {"training.gradients.type": "pcgard"},
            "arm 'mine': training.gradients.type: unknown 'pcgard'; did you mean 'p",
        ),
        ({"training.optimizer.lr": -1}, "arm 'mine': training.optimizer.lr: input should be greater than 0"),
    ],
)
def test_a_wrong_setting_of_an_arm_is_one_line(changes: dict[str, Any], message: str, experiment: Make) -> None:
    config = custom(experiment, changes)
    with pytest.raises(UserError) as caught:
        arm_settings(config, "mine")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_router_that_does_not_fit_the_solved_ranks_is_one_line(experiment: Make) -> None:
    """The arm chooses 8 of the ranks that are left when its router is paid for."""
    mine = {"experts": {"shared": 1}, "rank_wise": True, "router": {"type": "topk", "k": 8}}
    config = tiny.parsed(experiment(model__adapter={"rank": 8}, custom_arms={"mine": mine}))
    with pytest.raises(UserError, match=r"^arm 'mine': adapter: router\.k: 8 of 7 ranks$"):
        arm_settings(config, "mine")


@pytest.mark.parametrize("arm", ["joint_single", "joint_staged"])
def test_two_gradients_are_combined_where_there_are_two_or_not_at_all(arm: str, experiment: Make) -> None:
    """An option that changes nothing would be reported as a result of the method."""
    config = tiny.parsed(experiment(training__gradients={"type": "pcgrad"}))
    with pytest.raises(UserError, match=f"^arm '{arm}': training.gradients.type: 'pcgrad' needs both tasks"):
        arm_settings(config, arm)
    for fine in ("emb_only", "joint_mixed"):
        assert arm_settings(config, fine)[0].gradients.type == "pcgrad"


def test_arms_of_ones_own_are_named_and_kept_apart(experiment: Make) -> None:
    content = experiment(custom_arms={"mine": {"set": {"training.optimizer.lr": 0.1}}})
    config = parse_config({**content, "arms": ["mine", "joint_single"]}, "x")
    assert config.arm("mine").schedule is Schedule.ALTERNATING
    assert config.arm("mine").tasks == tuple(Task)
    assert _key(config, "mine") != _key(config, "joint_single")


def with_ranks(experiment: Make, ranks: dict[str, Any], router: str = "hard_shared") -> Any:
    mine = {"ranks": ranks, "router": {"type": router}}
    return tiny.parsed(experiment(model__adapter=ADAPTER, custom_arms={"mine": mine}))


def test_ranks_can_be_given_for_every_layer(experiment: Make) -> None:
    """And the model that is built has them: here the first layer does without the reranking expert."""
    ranks = {"embedding": [4, 4, 2], "reranking": [0, 4, 4], "shared": [8, 4, 6]}
    config = with_ranks(experiment, ranks)
    _, model = arm_settings(config, "mine")
    assert [model.adapter.ranks(layer) for layer in range(3)] == [
        {"embedding": 4, "shared": 8},
        {"embedding": 4, "reranking": 4, "shared": 4},
        {"embedding": 2, "reranking": 4, "shared": 6},
    ]
    sizes = [
        sum(p.numel() for p in tiny.arm_model(config, arm).trainable().values()) for arm in ("mine", "joint_single")
    ]
    assert sizes[0] == sizes[1]
    other = with_ranks(experiment, {**ranks, "shared": [4, 8, 6]})
    assert _key(other, "mine") != _key(config, "mine")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (
            {"embedding": 4, "reranking": 4, "shared": 3},
            r"arm 'mine': ranks: .* -8.3% against one LoRA of rank 12",
        ),
        ({"embedding": [4, 4], "reranking": 4, "shared": 4}, "arm 'mine': ranks: listed for 2 layers, the model has 3"),
        ({"embedding": 6, "shared": 6}, "needs an expert 'reranking'"),
    ],
    ids=str,
)
def test_ranks_that_do_not_fit_are_one_line(ranks: dict[str, Any], message: str, experiment: Make) -> None:
    with pytest.raises(UserError, match=message):
        arm_settings(with_ranks(experiment, ranks), "mine")


def test_shares_and_ranks_are_two_ways_to_say_it(experiment: Make) -> None:
    both = {"ranks": {"a": 6, "b": 6}, "experts": {"a": 1, "b": 1}, "router": {"type": "softmax"}}
    with pytest.raises(UserError, match="experts and ranks: give the shares of the experts or their ranks, not both"):
        tiny.parsed(experiment(custom_arms={"mine": both}))


@pytest.mark.parametrize(
    "key",
    ["training.embedding.steps", "training.reranking.batch_size", "training.optimizer.accumulation", "model.layers"],
)
def test_an_arm_may_not_change_its_exposure_or_its_size(key: str, experiment: Make) -> None:
    """Past the common size and budget, a comparison of arms would compare something else."""
    with pytest.raises(UserError, match=f"set: '{key}' would give this arm other examples or another size"):
        custom(experiment, {key: 3})


def test_an_arm_of_another_size_has_to_say_so(experiment: Make) -> None:
    mine = {"ranks": {"embedding": 1, "reranking": 1}, "router": {"type": "hard"}}
    with pytest.raises(UserError, match="is allowed, unless the arm says any_size"):
        arm_settings(tiny.parsed(experiment(model__adapter=ADAPTER, custom_arms={"mine": mine})), "mine")
    config = tiny.parsed(experiment(model__adapter=ADAPTER, custom_arms={"mine": {**mine, "any_size": True}}))
    assert plan_arm(config, "mine").adapter_parameters < plan_arm(config, "joint_single").adapter_parameters
