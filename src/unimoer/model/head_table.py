"""Every score head by the name that a configuration gives it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unimoer.config import ModelConfig
from unimoer.config.heads import HeadName
from unimoer.model.heads import LinearHead, MLPHead, YesNoHead
from unimoer.model.interaction import InteractionHead
from unimoer.model.listwise import FeedbackHead, ListwiseHead
from unimoer.model.score_head import ScoreHead

HEADS: dict[HeadName, type[ScoreHead]] = {
    "yes_no": YesNoHead,
    "linear": LinearHead,
    "mlp": MLPHead,
    "interaction": InteractionHead,
    "listwise": ListwiseHead,
    "cosine": FeedbackHead,
}


def build_head(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig, seed: int) -> ScoreHead:
    """The head of a configuration, on the base's device; `seed` alone decides what it starts with.

    Raises:
        UserError: the tokenizer has not the tokens that it reads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HEADS[config.reranking.head].build(base, tokenizer, config).to(base.device)
