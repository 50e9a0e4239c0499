"""A score from both parts of a pair, read together: the head that learns within a small budget."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.data.prompts import Prompter
from unimoer.model.heads import PairHead, pool
from unimoer.model.score_head import Recipe, ScoreHead
from unimoer.types import TokenBatch

SCALE = 20.0
"""Of a cosine at the start: the inverse of the temperature that retrieval trains with."""


class InteractionHead(PairHead):
    """A learned scale times the cosine of two means: of the states before a separator, and of those after it.

    Both parts, a query and a document, are read in one pass, so the later one has seen the other. Similar texts have
    similar states before anything is trained: a projection has to find that direction first, which takes it hundreds of
    steps. Control tokens, the separator among them, are in neither mean; the first position of a decoder attracts
    attention whatever stands there, so a prompt should begin with one.
    """

    control: Tensor
    recipe = Recipe(
        "The score is a learned scale times the cosine of two means, of the states before the token that separates "
        "query and document and of those after it: `score_head.safetensors`, float32.",
        'head["log_scale"].exp() * torch.cosine_similarity(state[:, 0], state[:, 1], dim=-1) + head["bias"]',
        setup='separator, control = about["head"]["separator"], torch.tensor(about["head"]["control"])\n',
        pool="""\
after = ((batch.input_ids == separator) * mask).cumsum(1)  # from the separator on
    text = mask * ~torch.isin(batch.input_ids, control)
    parts = torch.stack([text * (1 - after), text * after], 1).float()
    return parts @ hidden / parts.sum(2, keepdim=True).clamp(min=1)""",
    )

    def __init__(self, separator: int, control: Collection[int]) -> None:
        super().__init__()
        self.separator = separator
        self.register_buffer("control", torch.tensor(sorted(control)), persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def build(cls, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> Self:
        return cls(*Prompter(tokenizer, config.prompts).separator())

    def describe(self) -> dict[str, Any]:
        return {"separator": self.separator, "control": self.control.tolist()}

    def read(self, states: Tensor, batch: TokenBatch, pooling: str) -> Tensor:
        """`[B, T, d] -> [B]`; the separator stands once in every row."""
        mask = batch.attention_mask
        # A padding token may be the separator's.
        after = ((batch.input_ids == self.separator) & mask.bool()).cumsum(1)
        text = mask * ~torch.isin(batch.input_ids, self.control)
        first, second = pool(states, text * (1 - after), "mean"), pool(states, text * after, "mean")
        return self.log_scale.exp() * F.cosine_similarity(first, second, dim=-1) + self.bias

    def relevance(self, scores: np.ndarray) -> np.ndarray:
        """Of the cosine that was scaled: the sigmoid of twenty times a cosine is 1 for everything."""
        cosines = (scores.astype(np.float64) - self.bias.item()) / self.log_scale.exp().item()
        return ScoreHead.relevance(self, cosines)
