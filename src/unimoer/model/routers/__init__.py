"""Routers by type. A new one: a class in a file here, its config in `config.router`, one case below."""

from __future__ import annotations

from collections.abc import Sequence

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
from unimoer.model.routers.base import LearnedRouter, Router
from unimoer.model.routers.fixed import (
    HardRouter,
    HardSharedRouter,
    RandomFrozenRouter,
    SimilarityRouter,
    SoleRouter,
    UniformRouter,
)
from unimoer.model.routers.hierarchical import HierarchicalRouter
from unimoer.model.routers.reading import Standardiser
from unimoer.model.routers.softmax import SoftmaxRouter, TopKRouter, TsallisRouter
from unimoer.model.routers.sparsegen import SparsegenRouter, SparsityNetwork

__all__ = ["LearnedRouter", "Router", "RouterFactory", "Standardiser"]


class RouterFactory:
    """Builds the routers of one model, with the parts that they share."""

    def __init__(self, config: RouterConfig, layers: int) -> None:
        self.config = config
        self.layers = layers
        self._networks: dict[int, SparsityNetwork] = {}

    def __call__(self, experts: Sequence[str], units: int, width: int, layer: int) -> Router:
        """A router over `units` weights for decoder layer `layer`, reading inputs of size `width`."""
        router = self._build(experts, units, width, layer)
        return router.requires_grad_(self.config.learned)

    def _build(self, experts: Sequence[str], units: int, width: int, layer: int) -> Router:
        config = self.config
        match config:
            case HardConfig():
                return HardRouter(config, experts)
            case HardSharedConfig():
                return HardSharedRouter(config, experts)
            case SimilarityConfig():
                return SimilarityRouter(config, experts)
        if units == 1:
            return SoleRouter(config, experts)
        match config:
            case SparsegenConfig():
                return SparsegenRouter(config, experts, units, width, self._network(config, width))
            case TsallisConfig():
                return TsallisRouter(config, experts, units, width)
            case SoftmaxConfig():
                return SoftmaxRouter(config, experts, units, width)
            case TopKConfig():
                return TopKRouter(config, experts, units, width)
            case HierarchicalConfig():
                return HierarchicalRouter(config, experts, units, width, layer / max(1, self.layers - 1))
            case UniformConfig():
                return UniformRouter(config, experts, units)
            case RandomFrozenConfig():
                return RandomFrozenRouter(config, experts, units, width)

    def _network(self, config: SparsegenConfig, width: int) -> SparsityNetwork | None:
        if config.sparsity != "learned":
            return None
        if width not in self._networks:
            self._networks[width] = SparsityNetwork(width, config.sparsity_hidden)
        return self._networks[width]
