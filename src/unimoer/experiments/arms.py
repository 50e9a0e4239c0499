"""An arm's own configuration: the experiment's, with what the arm changes, and ranks that fit the common size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from unimoer.config import ArmConfig, ExperimentConfig, ModelConfig, parse_config, parse_model
from unimoer.errors import UserError
from unimoer.model.budget import TOLERANCE, BaseShape, measure_base, router_parameters, solve_ranks
from unimoer.types import TrainingMode


@cache
def _shape(model: ModelConfig) -> BaseShape:
    return measure_base(model)


def arm_settings(config: ExperimentConfig, name: str) -> tuple[ExperimentConfig, ModelConfig]:
    """What the run of an arm trains with, and the model that it trains.

    Raises:
        UserError: an override of the arm is wrong, its mode has no two gradients to combine, or no ranks fit.
    """
    arm = config.arm(name)
    settings = _override(config, arm, name)
    method = settings.training.gradients.type
    if method != "sum" and len(arm.mode.tasks) > 1 and arm.mode is not TrainingMode.JOINT_MIXED:
        raise UserError(
            f"arm '{name}': training.gradients.type: '{method}' needs both tasks in every step, "
            f"and mode '{arm.mode}' has one; use mode joint_mixed"
        )
    dims = settings.training.embedding.loss.matryoshka
    if dims and max(dims) != (width := _shape(config.model).width):
        raise UserError(
            f"training.embedding.loss.matryoshka: the largest of {list(dims)} must be the full size, {width}"
        )
    if arm.router is None:
        return settings, settings.model
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
        _check_size(name, model, settings.model)
    return settings, model


def _check_size(name: str, model: ModelConfig, plain: ModelConfig) -> None:
    layers = _shape(plain).layers
    if model.adapter.layers not in (None, layers):
        raise UserError(f"arm '{name}': ranks: listed for {model.adapter.layers} layers, the model has {layers}")
    size, wanted = (sum(count_parameters(one).values()) for one in (model, plain))
    if abs(size / wanted - 1) > TOLERANCE:
        raise UserError(
            f"arm '{name}': ranks: {size:,} trainable parameters, {size / wanted - 1:+.1%} against one LoRA of rank "
            f"{plain.adapter.rank}; {TOLERANCE:.0%} is allowed"
        )


def _override(config: ExperimentConfig, arm: ArmConfig, name: str) -> ExperimentConfig:
    if not arm.set:
        return config
    content: Any = OmegaConf.create(config.model_dump(mode="json"))
    for key, value in arm.set.items():
        if key.endswith(".type"):
            key, value = key.removesuffix(".type"), {"type": value}
        # A union's member is replaced, not merged: the fields of the old one would be unknown to the new one.
        OmegaConf.update(content, key, value, merge=not (isinstance(value, dict) and "type" in value))
    return parse_config(OmegaConf.to_container(content), f"arm '{name}'")


def count_parameters(model: ModelConfig) -> dict[str, int]:
    """Trainable parameters of a model's adapters and routers, before it is built; score heads are the same for all."""
    adapter = model.adapter
    plain = model.model_copy(update={"adapter": adapter.model_copy(update={"experts": None, "router": None})})
    shape = _shape(plain)
    ranks = [adapter.ranks(layer) for layer in range(shape.layers)]
    routers = 0
    if adapter.router is not None:
        units = [len(adapter.owners(layer)) for layer in range(shape.layers)]
        routers = router_parameters(adapter.router, units, shape)
    return {
        "adapter_parameters": round(sum(sum(layer.values()) for layer in ranks) * shape.rank_cost),
        "router_parameters": routers,
    }
