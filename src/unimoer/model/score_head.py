"""What a score head is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.model.routing import RoutingTrace
from unimoer.types import RerankingBatch

if TYPE_CHECKING:
    from unimoer.model.unified import UnifiedModel


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Scores `[G, K]` of a training batch, and, of a head with a loss of its own, the vectors behind them."""

    scores: Tensor
    vectors: Tensor | None = None


class ScoreHead(nn.Module):
    """Turns states into scores of relevance. Its kind (`config.heads`) says what it reads and which losses train it."""

    @classmethod
    @abstractmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        """For a loaded base; whatever is random is drawn on the CPU."""

    @abstractmethod
    def group(self, model: UnifiedModel, batch: RerankingBatch, trace: RoutingTrace) -> GroupScores:
        """Score a training batch of the form that this head reads."""

    def describe(self) -> dict[str, Any]:
        """What an export must say of it beside its type and its weights."""
        return {}
