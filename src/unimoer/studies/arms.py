"""An arm's own settings: the study's, with what the arm changes, and ranks that fit the common size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from unimoer.config import SHARED, START, ModelConfig, StudyConfig, TrainingConfig, parse_config, parse_model
from unimoer.config.study import JOINT, override
from unimoer.errors import UserError
from unimoer.model.budget import TOLERANCE, BaseShape, measure_base, router_parameters, solve_ranks
from unimoer.schema.plan import ArmPlan
from unimoer.types import Schedule


@cache
def _shape(model: ModelConfig) -> BaseShape:
    return measure_base(model)


def arm_settings(config: StudyConfig, name: str) -> tuple[TrainingConfig, ModelConfig]:
    """What the run of an arm trains with, and the model that it trains.

    Raises:
        UserError: an override of the arm is wrong, its schedule has no two gradients to combine, or no ranks fit.
    """
    arm = config.arm(name)
    settings = config
    if arm.set:
        settings = parse_config(override(config.model_dump(mode="json"), arm.set), f"arm '{name}'")
    method = settings.training.gradients.type
    if method != "sum" and len(arm.tasks) > 1 and arm.schedule is not Schedule.MIXED:
        raise UserError(
            f"arm '{name}': training.gradients.type: '{method}' needs both tasks in every step, "
            f"and schedule '{arm.schedule}' has one; use schedule mixed"
        )
    dims = settings.training.embedding.loss.matryoshka
    if dims and max(dims) != (width := _shape(config.model).width):
        raise UserError(
            f"training.embedding.loss.matryoshka: the largest of {list(dims)} must be the full size, {width}"
        )
    if arm.router is None:
        return settings.training, settings.model
    adapter = settings.model.adapter
    ranks: Mapping[str, Any] = arm.ranks or {}
    if arm.experts is not None:
        ranks = solve_ranks(adapter, arm.experts, arm.router, _shape(settings.model), rank_wise=arm.rank_wise)
    content = adapter.model_dump(mode="json") | {
        "experts": dict(ranks),
        "router": arm.router.model_dump(mode="json"),
        "rank_wise": arm.rank_wise,
    }
    model = parse_model(settings.model.model_dump(mode="json") | {"adapter": content}, f"arm '{name}'")
    if arm.ranks is not None:
        _check_size(name, model, settings.model, any_size=arm.any_size)
    return settings.training, model


def _check_size(name: str, model: ModelConfig, plain: ModelConfig, *, any_size: bool) -> None:
    layers = _shape(plain).layers
    if model.adapter.layers not in (None, layers):
        raise UserError(f"arm '{name}': ranks: listed for {model.adapter.layers} layers, the model has {layers}")
    size, wanted = (sum(count_parameters(one)) for one in (model, plain))
    if not any_size and abs(size / wanted - 1) > TOLERANCE:
        raise UserError(
            f"arm '{name}': ranks: {size:,} trainable parameters, {size / wanted - 1:+.1%} against one LoRA of rank "
            f"{plain.adapter.rank}; {TOLERANCE:.0%} is allowed, unless the arm says any_size"
        )


def count_parameters(model: ModelConfig) -> tuple[int, int]:
    """Parameters of a model's adapters and of its routers, before it is built; score heads are the same for all."""
    adapter = model.adapter
    plain = model.model_copy(update={"adapter": adapter.model_copy(update={"experts": None, "router": None})})
    shape = _shape(plain)
    ranks = [adapter.ranks(layer) for layer in range(shape.layers)]
    routers = 0
    if adapter.router is not None:
        units = [len(adapter.owners(layer)) for layer in range(shape.layers)]
        routers = router_parameters(adapter.router, units, shape)
    return round(sum(sum(layer.values()) for layer in ranks) * shape.rank_cost), routers


def plan_arm(config: StudyConfig, name: str) -> ArmPlan:
    """What an arm is, for the plan.

    Raises:
        UserError: no ranks give it the size of the others.
    """
    training, model = arm_settings(config, name)
    arm, router = config.arm(name), model.adapter.router
    adapters, routers = count_parameters(model)
    experts = model.adapter.experts or {SHARED: model.adapter.rank}
    return ArmPlan(
        tasks=list(arm.tasks),
        schedule=arm.schedule,
        router=None if router is None else router.type,
        granularity=getattr(router, "granularity", None),
        learned=router is not None and router.learned,
        reads_text=router is not None and router.reads_text,
        told_task=router is not None and router.told_task,
        task_prior=getattr(router, "task_prior", 0.0),
        null_of=name.removesuffix(START) if name.endswith(START) else None,
        rank_wise=model.adapter.rank_wise,
        experts={expert: list(rank) if isinstance(rank, tuple) else rank for expert, rank in experts.items()},
        gradients=training.gradients.type,
        adapter_parameters=adapters,
        router_parameters=routers,
        base_parameters=_shape(config.model).parameters,
        layers=_shape(config.model).layers,
        steps={task: config.steps(arm, task) for task in arm.tasks},
    )


def with_starts(config: StudyConfig) -> StudyConfig:
    """The configuration with the untrained start of every learned router among its arms."""
    arms = list(config.arms)
    for name in config.arms:
        null = f"{name}{START}"
        if config.arm(name).start() is not None and null not in arms:
            arms.append(null)
    return config.model_copy(update={"arms": tuple(arms)})


__all__ = ["JOINT", "arm_settings", "count_parameters", "plan_arm", "with_starts"]
