"""What can be varied about the adapter: its experts, their ranks, and who weighs them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from unimoer.config.base import Strict
from unimoer.config.router import (
    SHARED,
    TASK_EXPERTS,
    LearnedRouterConfig,
    RouterConfig,
    SparsegenConfig,
    TopKConfig,
)

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Rank = Annotated[int, Field(ge=0)]


class AdapterConfig(Strict):
    rank: int = Field(16, ge=1)
    """Rank r of one LoRA update. Routed arms get as many parameters: their experts' ranks are found from it."""
    alpha: float = Field(32.0, gt=0)
    """An update is scaled by alpha / rank, the same for experts of any rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input, while training."""
    targets: tuple[str, ...] = Field(ALL_PROJECTIONS, min_length=1)
    """Which linear layers of every decoder layer get an adapter."""
    experts: dict[str, Rank | tuple[Rank, ...]] | None = None
    """Rank of each expert by name, the same in all layers or listed for each; rank 0 leaves the expert out of that
    layer (layer-wise numbers of experts, after MoLA, 2402.08562). Empty: one expert of rank `rank`, plain LoRA."""
    router: RouterConfig | None = None
    """Who weighs the experts; required with more than one."""
    rank_wise: bool = False
    """Every rank is an expert of its own (after SMoRA, arXiv 2501.15103)."""
    gain: float | None = Field(None, gt=0)
    """Multiplies weights that sum to 1. Empty: the number of experts, so that uniform weights give one LoRA of the
    total rank and a routed update is as large as an unrouted one."""

    @property
    def is_routed(self) -> bool:
        return self.router is not None

    def ranks(self, layer: int) -> dict[str, int]:
        """Rank of every expert that decoder layer `layer` has."""
        if self.experts is None:
            return {SHARED: self.rank}
        found = {name: rank if isinstance(rank, int) else rank[layer] for name, rank in self.experts.items()}
        return {name: rank for name, rank in found.items() if rank > 0}

    def owners(self, layer: int) -> list[str]:
        """The expert that each routing weight of decoder layer `layer` belongs to, in their order."""
        return [name for name, rank in self.ranks(layer).items() for _ in range(rank if self.rank_wise else 1)]

    @property
    def layers(self) -> int | None:
        """How many layers the ranks are listed for; None when they are the same in all."""
        lengths = {len(rank) for rank in (self.experts or {}).values() if isinstance(rank, tuple)}
        return lengths.pop() if lengths else None

    @field_validator("experts")
    @classmethod
    def _same_length(cls, experts: dict[str, int | tuple[int, ...]] | None) -> dict[str, int | tuple[int, ...]] | None:
        if experts is None:
            return None
        if not experts:
            raise ValueError("name at least one expert, or leave the field out for plain LoRA")
        lengths = {len(rank) for rank in experts.values() if isinstance(rank, tuple)}
        if len(lengths) > 1:
            raise ValueError(f"ranks are listed for different numbers of layers: {sorted(lengths)}")
        for layer in range(lengths.pop() if lengths else 1):
            if not any((rank if isinstance(rank, int) else rank[layer]) for rank in experts.values()):
                raise ValueError(f"layer {layer} has no expert: every rank is 0 there")
        return experts

    @model_validator(mode="after")
    def _router_fits(self) -> AdapterConfig:
        names = list(self.experts or {SHARED: self.rank})
        if self.router is None:
            if len(names) > 1:
                raise ValueError(f"router: {len(names)} experts ({', '.join(names)}) need a router to weigh them")
            if self.rank_wise:
                raise ValueError("router: rank_wise experts need a router to weigh them")
            return self
        if self.router.named_experts:
            self._has_experts(self.router.named_experts, names, f"router '{self.router.type}'")
            return self
        if isinstance(self.router, LearnedRouterConfig) and self.router.task_prior > 0:
            if not self.router.task_aware:
                raise ValueError("router.task_prior: only a router that is task_aware can prefer a task's own expert")
            self._has_experts(TASK_EXPERTS, names, f"router.task_prior of '{self.router.type}'")
        units = [len(self.owners(layer)) for layer in range(self.layers or 1)]
        if max(units) < 2:
            raise ValueError(f"experts: router '{self.router.type}' has one expert only, and nothing to decide")
        # A layer with a single expert has no router.
        fewest = min(count for count in units if count > 1)
        if isinstance(self.router, TopKConfig) and self.router.k > fewest:
            raise ValueError(f"router.k: {self.router.k} of {fewest} {'ranks' if self.rank_wise else 'experts'}")
        if (
            isinstance(self.router, SparsegenConfig)
            and self.router.sparsity_loss_weight
            and self.router.max_active >= fewest
        ):
            raise ValueError(f"router.max_active: {self.router.max_active} of {fewest} experts is no sparsity")
        return self

    def _has_experts(self, needed: tuple[str, ...], names: list[str], what: str) -> None:
        missing = [name for name in needed if name not in names]
        if missing:
            raise ValueError(f"experts: {what} needs an expert '{missing[0]}'; there are {', '.join(names)}")
        if self.rank_wise:
            raise ValueError(f"rank_wise: {what} weighs whole experts")
        layers = range(self.layers or 1)
        pilots = self.router is not None and self.router.uses_pilots
        if pilots and any(len(self.ranks(layer)) < len(names) for layer in layers):
            raise ValueError(f"experts: {what} needs every expert in every layer: no rank may be 0")
