"""What can be varied about the data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from unimoer.config.base import Strict
from unimoer.errors import did_you_mean


class NegativesConfig(Strict):
    """Which documents of a ranking become negatives; `s` is a document's score, `p` the positive's.

    With several positives `p` is the lowest of their scores, so that no positive's near copy slips through. Filters
    of NV-Retriever (Moreira et al., arXiv 2407.15831).
    """

    strategy: Literal["none", "absolute", "margin_pos", "percent_pos"] = "none"
    """`none`: rank alone. `absolute`: s < max_score. `margin_pos`: s < p - margin. `percent_pos`: s < percent * p."""
    num_negatives: int = Field(default=10, ge=1)
    """Kept per query, hardest first."""
    range_min: int = Field(default=0, ge=0)
    """Ranks skipped at the top, where unlabelled relevant documents gather; positives do not count as ranks."""
    range_max: int = Field(default=100, ge=1)
    """Ranks looked at."""
    max_score: float | None = None
    margin: float = Field(default=0.05, ge=0)
    percent: float = Field(default=0.95, gt=0, le=1)
    split_identifiers: bool = False
    """For the BM25 that is built when no scorer is given: index the parts of identifiers, for source code."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "absolute" and self.max_score is None:
            raise ValueError("strategy 'absolute' needs max_score")
        if self.range_max <= self.range_min:
            raise ValueError(f"range_max ({self.range_max}) must be above range_min ({self.range_min})")
        return self

    def bound(self, positive: float) -> float:
        """Scores from here on are too near the positive's.

        A percentage of a negative score would lie above it, and admit what outranks the positive; the distance is
        therefore a percentage of the score's size, which is the same thing for positive scores.
        """
        match self.strategy:
            case "none":
                return float("inf")
            case "absolute":
                return float("inf") if self.max_score is None else self.max_score
            case "margin_pos":
                return positive - self.margin
            case "percent_pos":
                return positive - (1 - self.percent) * abs(positive)


class DomainConfig(Strict):
    """One training set: where it comes from and how much of it is used."""

    source: str
    """`embedded:NAME`, a folder in BEIR layout, `hf:ID-OR-FOLDER`, or `ir:ID`."""
    split: str = "train"
    weight: float = Field(1.0, gt=0)
    """Share of training batches, relative to the other domains."""
    queries: int | None = Field(None, ge=1)
    """Sample this many; all when empty."""
    documents: int | None = Field(None, ge=1)
    """Keep every document judged in the split and sample others up to this many; all when empty."""
    mine_negatives: bool = True
    """Mine hard negatives, with BM25 or from the run below, after those that the data set itself brings."""
    negatives_run: str | None = None
    """A TREC run file of the training queries to mine from in place of BM25: any engine's, or an earlier model's own,
    which `unimoer evaluate RUN --data SOURCE --split train --trec FOLDER` writes."""
    split_identifiers: bool = False
    """Let BM25 split camelCase and snake_case words (code)."""
    instruction: str | None = None
    """Replaces `model.prompts.instruction` for this domain."""


DomainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names a folder of results, so it holds no path."""


class DataConfig(Strict):
    domains: dict[DomainName, DomainConfig] = Field(min_length=1)
    left_out: tuple[DomainName, ...] = ()
    """Domains above that are not trained on, for a look out of domain; in a study of variants, one at each point."""
    part: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.0, 1.0)
    """Of every domain's queries in a fixed shuffle, train on those from the first share to the second: stages that
    follow each other can have queries of their own, e.g. [0, 0.6] and [0.6, 1]."""
    sample_seed: int = 0
    """Seed of the samples above: the same for every run, so that arms and seeds share their training data."""
    negatives: NegativesConfig = NegativesConfig()

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.part[0] >= self.part[1]:
            raise ValueError(f"part: [{self.part[0]:g}, {self.part[1]:g}] holds no query; give a lower share first")
        for name in self.left_out:
            if name not in self.domains:
                raise ValueError(f"left_out: '{name}' is none of the domains{did_you_mean(name, self.domains)}")
        if self.domains.keys() <= set(self.left_out):
            raise ValueError("left_out: nothing is left to train on")
        return self

    @property
    def trained(self) -> dict[str, DomainConfig]:
        """The domains that are trained on, by name."""
        return {name: domain for name, domain in self.domains.items() if name not in self.left_out}
