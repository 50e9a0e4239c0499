"""What a score head is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.model.routing import RoutingTrace
from unimoer.types import RerankingBatch, TokenBatch

if TYPE_CHECKING:
    from unimoer.model.unified import UnifiedModel


class Split(Protocol):
    """The processes that compute a batch together, row by row."""

    def share(self, batch: TokenBatch) -> TokenBatch:
        """This process's rows."""
        ...

    def part(self, values: Tensor) -> Tensor:
        """This process's rows of a tensor that all have."""
        ...

    def gather(self, own: Tensor, total: int) -> Tensor:
        """The rows of all, `[own rows, ...] -> [total, ...]`."""
        ...


class _Whole:
    """One process, which computes everything."""

    def share(self, batch: TokenBatch) -> TokenBatch:
        return batch

    def part(self, values: Tensor) -> Tensor:
        return values

    def gather(self, own: Tensor, total: int) -> Tensor:
        return own


WHOLE = _Whole()


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Scores `[G, K]` of a training batch, and, of a head with a loss of its own, the vectors behind them."""

    scores: Tensor
    vectors: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How code without this package scores with a head; it stands in the README of an export.

    The code has `state`, the pooled states `[B, d]`; `about["head"]`, what `describe` says; `plain`, the model with its
    LM head; and, of a learned head, its tensors by name as `head`.
    """

    words: str
    """What the score is, in a sentence."""
    score: str
    """An expression for it."""
    setup: str = ""
    """Statements before the first score."""
    pool: str = ""
    """The end of the function that makes `state`, in place of pooling; it has `hidden`, `mask`, `batch`."""


class ScoreHead(nn.Module):
    """Turns states into scores of relevance. Its kind (`config.heads`) says what it reads and which losses train it."""

    recipe: ClassVar[Recipe | None] = None
    """None where no other format can say what it reads, or nobody has written it: it is not exported then."""

    @classmethod
    @abstractmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        """For a loaded base; whatever is random is drawn on the CPU."""

    @abstractmethod
    def score_batch(
        self, model: UnifiedModel, batch: RerankingBatch, trace: RoutingTrace, split: Split = WHOLE
    ) -> BatchScores:
        """Score a training batch of the form that this head reads; `split` says which rows are computed here."""

    def relevance(self, scores: np.ndarray) -> np.ndarray:
        """Scores of this head -> numbers from 0 to 1 in the same order, float64; of a cosine, half of it and a half."""
        return np.clip((1 + scores.astype(np.float64)) / 2, 0, 1)

    def describe(self) -> dict[str, Any]:
        """What an export must say of it beside its type and its weights."""
        return {}
