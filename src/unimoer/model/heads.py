"""From hidden states to one vector or one logit a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.errors import UserError
from unimoer.model.routing import RoutingTrace
from unimoer.model.score_head import WHOLE, BatchScores, Recipe, ScoreHead, Split
from unimoer.types import PairBatch, RerankingBatch, TokenBatch

if TYPE_CHECKING:
    from unimoer.model.unified import UnifiedModel


def pool(hidden: Tensor, mask: Tensor, how: Literal["last", "mean"]) -> Tensor:
    """`[B, T, d]`, `[B, T]` -> `[B, d]` in float32; works on either padding side.

    There is no first-token pooling: under causal attention position 0 sees nothing but itself.
    """
    if how == "last":
        # argmax finds the first maximum, so the positions are weighted to make the last real one largest.
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    # One batched product instead of a masked copy of all states. In bfloat16 its result would be rounded.
    total = torch.bmm(mask.float().unsqueeze(1), hidden.float()).squeeze(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


class PairHead(ScoreHead):
    """Reads one query with one document: their pooled state, `[B, d] -> [B]`, unless it says otherwise."""

    def read(self, states: Tensor, batch: TokenBatch, pooling: Literal["last", "mean"]) -> Tensor:
        """States of all tokens `[B, T, d] -> [B]`."""
        scores: Tensor = self(pool(states, batch.attention_mask, pooling))
        return scores

    def score_batch(
        self, model: UnifiedModel, batch: RerankingBatch, trace: RoutingTrace, split: Split = WHOLE
    ) -> BatchScores:
        assert isinstance(batch, PairBatch)
        own = model.score(split.share(batch.pairs).to(str(model.device)), trace)
        return BatchScores(split.gather(own, batch.labels.numel()).view(batch.labels.shape))

    def relevance(self, scores: np.ndarray) -> np.ndarray:
        """The sigmoid: a probability after loss `bce`, after others an order only."""
        found: np.ndarray = expit(scores.astype(np.float64))
        return found


class YesNoHead(PairHead):
    """`logit("yes") - logit("no")` from two frozen rows of the LM head; its sigmoid is Qwen3-Reranker's score.

    With the rest of the vocabulary left out, binary cross-entropy on this logit is the two-way softmax.
    """

    difference: Tensor
    recipe = Recipe(
        "The score is the logit of `yes` minus the logit of `no` at the last token; only these two rows of the LM head "
        "are read.",
        "state @ difference",
        setup="rows = plain.get_output_embeddings().weight.detach().float()\n"
        'difference = rows[about["head"]["yes_id"]] - rows[about["head"]["no_id"]]\n',
    )

    def __init__(self, lm_head: Tensor, yes_id: int, no_id: int) -> None:
        super().__init__()
        self.ids = {"yes_id": yes_id, "no_id": no_id}
        difference = lm_head[yes_id].detach().float() - lm_head[no_id].detach().float()
        self.register_buffer("difference", difference, persistent=False)

    @classmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        ids = []
        for word in ("yes", "no"):
            tokens = tokenizer(word, add_special_tokens=False).input_ids
            if len(tokens) != 1:
                raise UserError(f"model.reranking.head: '{word}' is not one token of {config.base}; use 'linear'")
            ids += tokens
        return cls(base.get_output_embeddings().weight, *ids)

    def forward(self, state: Tensor) -> Tensor:
        """`[B, d] -> [B]`."""
        return state @ self.difference

    def describe(self) -> dict[str, Any]:
        return self.ids


class LinearHead(PairHead):
    """A learned projection of the pooled state."""

    recipe = Recipe(
        "The score is a learned projection of the pooled state: `score_head.safetensors`, float32.",
        'state @ head["projection.weight"][0] + head["projection.bias"]',
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        nn.init.zeros_(self.projection.bias)

    @classmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        return cls(base.get_output_embeddings().weight.shape[1])

    def forward(self, state: Tensor) -> Tensor:
        """`[B, d] -> [B]`."""
        return self.projection(state).squeeze(-1)


class MLPHead(PairHead):
    """A learned network of one hidden layer, as wide as half the state."""

    recipe = Recipe(
        "The score is a learned network of one hidden layer (GELU) over the last state: `score_head.safetensors`, "
        "float32.",
        'torch.nn.functional.gelu(state @ head["hidden.weight"].T + head["hidden.bias"])'
        ' @ head["projection.weight"][0] + head["projection.bias"]',
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width // 2, dtype=torch.float32)
        self.projection = nn.Linear(width // 2, 1, dtype=torch.float32)
        nn.init.normal_(self.hidden.weight, std=width**-0.5)
        nn.init.normal_(self.projection.weight, std=(width // 2) ** -0.5)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.projection.bias)

    @classmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        return cls(base.get_output_embeddings().weight.shape[1])

    def forward(self, state: Tensor) -> Tensor:
        """`[B, d] -> [B]`."""
        return self.projection(F.gelu(self.hidden(state))).squeeze(-1)
