"""The arms of a study: which tasks each trains, in what order, and with which experts and router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from unimoer.config.adapter import Rank
from unimoer.config.base import Strict
from unimoer.config.router import (
    HardConfig,
    HardSharedConfig,
    HierarchicalConfig,
    LearnedRouterConfig,
    RandomFrozenConfig,
    RouterConfig,
    SimilarityConfig,
    SoftmaxConfig,
    SparsegenConfig,
    TopKConfig,
    TsallisConfig,
    UniformConfig,
)
from unimoer.types import Schedule, Task

TASK_EXPERTS = {"embedding": 1.0, "reranking": 1.0}
THREE_EXPERTS = {"embedding": 1.0, "reranking": 1.0, "shared": 2.0}


BOTH = (Task.EMBEDDING, Task.RERANKING)
START = "_start"
"""Ends the name of an arm that is another arm's null: the same, but its routers stay as they began."""


class ArmConfig(Strict):
    """One arm: which tasks, in what order, through which adapter. The rest is as in the whole configuration."""

    tasks: tuple[Task, ...] = Field(BOTH, min_length=1)
    schedule: Schedule = Schedule.ALTERNATING
    experts: dict[str, float] | None = None
    """Share of each expert in the rank of the adapter. The ranks themselves are solved for, layer by layer, so that
    the arm has as many trainable parameters as one LoRA of rank `model.adapter.rank`, router included."""
    ranks: dict[str, Rank | tuple[Rank, ...]] | None = None
    """Instead of shares: the rank of each expert, the same in all layers or listed for each, 0 to leave it out of a
    layer. The arm must have the size of the others all the same, unless `any_size` is set."""
    any_size: bool = False
    """The arm may be larger or smaller than one LoRA: a study of sizes says so in its plan."""
    router: RouterConfig | None = None
    rank_wise: bool = False
    set: dict[str, Any] = Field(default_factory=dict)
    """Other settings of this arm, by dotted key, such as `training.gradients.type: pcgrad`."""

    @model_validator(mode="after")
    def _is_consistent(self) -> ArmConfig:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: each may be named once")
        if len(self.tasks) == 1 and self.router is not None:
            raise ValueError(f"router: an arm for {self.tasks[0]} alone trains one LoRA; routed arms train both tasks")
        if len(self.tasks) == 1 and self.schedule is not Schedule.ALTERNATING:
            raise ValueError(f"schedule: '{self.schedule}' orders two tasks, and this arm has one")
        if self.experts is not None and self.ranks is not None:
            raise ValueError("experts and ranks: give the shares of the experts or their ranks, not both")
        if (self.router is None) != (self.experts is None and self.ranks is None):
            raise ValueError("experts and router belong together: give both or neither")
        # A key may hold a whole part of the configuration.
        keys = [*self.set, *_leaves(self.set)]
        bad = [key for key in self.set if not key.startswith(("training.", "model."))]
        if bad:
            raise ValueError(f"set: '{bad[0]}' is not of one arm; an arm may change keys of model and training")
        if any(f"{key}.".startswith("model.reranking.head.") for key in keys) or "model.reranking" in self.set:
            raise ValueError(
                "set: 'model.reranking.head' is no difference between arms, whose specialists would have another; "
                "change it for the whole configuration"
            )
        exposure = [key for key in keys if key.rpartition(".")[2] in _EXPOSURE or key in _SIZE]
        if exposure:
            raise ValueError(
                f"set: '{exposure[0]}' would give this arm other examples or another size than the others have; "
                "change it for the whole configuration"
            )
        read = [key for key in keys if key.startswith("model.prompts.") or key in _READ]
        if read or "model.prompts" in self.set:
            raise ValueError(
                f"set: '{(read or ['model.prompts'])[0]}' would let this arm read other texts, or another base, than "
                "the others; change it for the whole configuration"
            )
        return self

    def start(self) -> ArmConfig | None:
        """The arm's own null, whose routers are never trained; None where nothing is learned about routing."""
        if not isinstance(self.router, LearnedRouterConfig) or self.router.frozen:
            return None
        return self.model_copy(update={"router": self.router.model_copy(update={"frozen": True})})


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of the values in nested dictionaries."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


_EXPOSURE = ("steps", "batch_size", "negatives", "random_until", "accumulation")
_READ = ("model.revision", "model.dtype", "model.padding", "model.reranking.list_size")
_SIZE = ("model.adapter", "model.adapter.rank", "model.adapter.targets", "model.layers", "model.base")


def _routed(router: RouterConfig, experts: dict[str, float] = THREE_EXPERTS, **more: Any) -> ArmConfig:
    return ArmConfig(experts=experts, router=router, **more)


BUILTIN: dict[str, ArmConfig] = {
    "emb_only": ArmConfig(tasks=(Task.EMBEDDING,)),
    "rank_only": ArmConfig(tasks=(Task.RERANKING,)),
    "joint_single": ArmConfig(),
    "joint_moe": _routed(SparsegenConfig()),
    "moe_causal": _routed(SparsegenConfig(granularity="causal")),
    "moe_token": _routed(SparsegenConfig(granularity="token")),
    "moe_task": _routed(SparsegenConfig(task_aware=True, task_prior=1.0)),
    "hard_switch": _routed(HardConfig(), TASK_EXPERTS),
    "hard_shared": _routed(HardSharedConfig()),
    "similarity": _routed(SimilarityConfig(), TASK_EXPERTS),
    "softmax": _routed(SoftmaxConfig()),
    "topk": _routed(TopKConfig()),
    "tsallis": _routed(TsallisConfig()),
    "hierarchical": _routed(HierarchicalConfig(granularity="token")),
    "rank_wise": _routed(TopKConfig(k=4, bias_rate=1e-3, aux_loss_weight=0.0), {"shared": 1.0}, rank_wise=True),
    "uniform": _routed(UniformConfig()),
    "random_frozen": _routed(RandomFrozenConfig()),
    "joint_mixed": ArmConfig(schedule=Schedule.MIXED),
    "moe_mixed": ArmConfig(schedule=Schedule.MIXED, experts=THREE_EXPERTS, router=SparsegenConfig()),
    "joint_staged": ArmConfig(schedule=Schedule.STAGED),
    "pcgrad": ArmConfig(schedule=Schedule.MIXED, set={"training.gradients.type": "pcgrad"}),
    "cagrad": ArmConfig(schedule=Schedule.MIXED, set={"training.gradients.type": "cagrad"}),
    "gradnorm": ArmConfig(schedule=Schedule.MIXED, set={"training.gradients.type": "gradnorm"}),
    "famo": ArmConfig(schedule=Schedule.MIXED, set={"training.gradients.type": "famo"}),
}
"""Arms by name; a configuration adds its own under `custom_arms`."""
