"""The arms of an experiment: what each trains, in what order, and with which experts and router."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from unimoer.config.adapter import Rank
from unimoer.config.base import Strict
from unimoer.config.router import (
    HardConfig,
    HardSharedConfig,
    HierarchicalConfig,
    RandomFrozenConfig,
    RouterConfig,
    SimilarityConfig,
    SoftmaxConfig,
    SparsegenConfig,
    TopKConfig,
    TsallisConfig,
    UniformConfig,
)
from unimoer.types import TrainingMode

TASK_EXPERTS = {"embedding": 1.0, "reranking": 1.0}
THREE_EXPERTS = {"embedding": 1.0, "reranking": 1.0, "shared": 2.0}


class ArmConfig(Strict):
    """One arm. Whatever it does not say is as in the rest of the configuration."""

    mode: TrainingMode
    experts: dict[str, float] | None = None
    """Share of each expert in the rank of the adapter. The ranks themselves are solved for, layer by layer, so that
    the arm has as many trainable parameters as one LoRA of rank `model.adapter.rank`, router included."""
    ranks: dict[str, Rank | tuple[Rank, ...]] | None = None
    """Instead of shares: the rank of each expert, the same in all layers or listed for each, 0 to leave it out of a
    layer. The arm must have the size of the others all the same."""
    router: RouterConfig | None = None
    rank_wise: bool = False
    set: dict[str, Any] = Field(default_factory=dict)
    """Other settings of this arm, by dotted key, such as `training.gradients.type: pcgrad`."""

    @model_validator(mode="after")
    def _fits_its_mode(self) -> ArmConfig:
        if self.mode is TrainingMode.JOINT_MOE and self.router is None:
            raise ValueError("router: mode 'joint_moe' needs one")
        alone = len(self.mode.tasks) == 1
        if (alone or self.mode is TrainingMode.JOINT_SINGLE) and self.router is not None:
            raise ValueError(f"router: mode '{self.mode}' trains one LoRA; use joint_moe, joint_mixed or joint_staged")
        if self.experts is not None and self.ranks is not None:
            raise ValueError("experts and ranks: give the shares of the experts or their ranks, not both")
        if (self.router is None) != (self.experts is None and self.ranks is None):
            raise ValueError("experts and router belong together: give both or neither")
        bad = [key for key in self.set if not key.startswith(("training.", "model."))]
        if bad:
            raise ValueError(f"set: '{bad[0]}' is not of one arm; an arm may change keys of model and training")
        heads = [key for key in self.set if f"{key}.".startswith("model.reranking.head.")]
        if heads or "model.reranking" in self.set:
            raise ValueError(
                "set: 'model.reranking.head' is no difference between arms, whose specialists would have another; "
                "change it for the whole configuration"
            )
        return self


def _routed(router: RouterConfig, experts: dict[str, float] = THREE_EXPERTS, **more: Any) -> ArmConfig:
    return ArmConfig(mode=TrainingMode.JOINT_MOE, experts=experts, router=router, **more)


BUILTIN: dict[str, ArmConfig] = {
    "emb_only": ArmConfig(mode=TrainingMode.EMB_ONLY),
    "rank_only": ArmConfig(mode=TrainingMode.RANK_ONLY),
    "joint_single": ArmConfig(mode=TrainingMode.JOINT_SINGLE),
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
    "joint_mixed": ArmConfig(mode=TrainingMode.JOINT_MIXED),
    "moe_mixed": ArmConfig(mode=TrainingMode.JOINT_MIXED, experts=THREE_EXPERTS, router=SparsegenConfig()),
    "joint_staged": ArmConfig(mode=TrainingMode.JOINT_STAGED),
    "pcgrad": ArmConfig(mode=TrainingMode.JOINT_MIXED, set={"training.gradients.type": "pcgrad"}),
    "cagrad": ArmConfig(mode=TrainingMode.JOINT_MIXED, set={"training.gradients.type": "cagrad"}),
    "gradnorm": ArmConfig(mode=TrainingMode.JOINT_MIXED, set={"training.gradients.type": "gradnorm"}),
    "famo": ArmConfig(mode=TrainingMode.JOINT_MIXED, set={"training.gradients.type": "famo"}),
}
"""Arms by name; a configuration adds its own under `custom_arms`."""
