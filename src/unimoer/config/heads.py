"""What kind each score head is, for all who must know it before there is a model.

A new head: its kind here, its class in `model.heads`, its code in `model.export_readme` if it reads pairs, its test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unimoer.config.training import BCEConfig, GroupSoftmaxConfig, RankingLossConfig

Reads = Literal["pairs", "marked lists", "lists"]
"""A query with one document; one prompt of a query and its candidates, read at marks or as a whole."""
HeadName = Literal["yes_no", "linear", "mlp", "interaction", "listwise", "cosine"]


@dataclass(frozen=True, slots=True)
class HeadKind:
    reads: Reads = "pairs"
    learned: bool = True
    """Whether it has parameters of its own."""
    random_start: bool = True
    """Whether these start at random."""
    cosine: bool = False
    """Its scores are cosines; otherwise logits, whose sigmoid is a probability only after loss `bce`."""
    last_token: str = ""
    """What it reads, if that needs pooling `last`."""
    two_parts: bool = False
    """It compares the means of a prompt's query and document."""
    own_loss: str = ""
    """Type of the loss that reads more of it than scores."""

    @property
    def reads_lists(self) -> bool:
        """Whether it reads a query with all its candidates at once."""
        return self.reads != "pairs"


HEADS: dict[HeadName, HeadKind] = {
    "yes_no": HeadKind(learned=False, last_token="the token after the prompt's suffix"),
    "linear": HeadKind(),
    "mlp": HeadKind(last_token="the last token"),
    "interaction": HeadKind(two_parts=True, random_start=False),
    "listwise": HeadKind(reads="marked lists", cosine=True, own_loss="listwise"),
    "cosine": HeadKind(reads="lists", cosine=True, learned=False),
}


def check_loss(head: HeadName, loss: RankingLossConfig) -> None:
    """Raises: ValueError when the loss cannot train the head, or hardly."""
    kind = HEADS[head]
    owner = next((name for name, other in HEADS.items() if other.own_loss == loss.type), None)
    if owner is not None and kind.own_loss != loss.type:
        raise ValueError(f"training.reranking.loss: '{loss.type}' reads the marks of head '{owner}', not '{head}'")
    if isinstance(loss, BCEConfig) and kind.cosine:
        raise ValueError(f"training.reranking.loss: 'bce' needs a logit; head '{head}' gives a cosine")
    if isinstance(loss, GroupSoftmaxConfig) and loss.temperature >= 1 and kind.cosine:
        raise ValueError(
            f"training.reranking.loss: head '{head}' gives cosines, which a softmax at temperature "
            f"{loss.temperature:g} cannot tell apart; use type {kind.own_loss or 'ranknet'}, or a temperature such as "
            "0.1"
        )
