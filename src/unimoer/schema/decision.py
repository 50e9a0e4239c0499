"""`decision.json`: the verdict on interference, what the intervals support, and whether the models are of any use."""

from __future__ import annotations

from typing import Literal

from unimoer.schema.base import Cell, Interval, Record
from unimoer.schema.plan import Amendment, Criterion
from unimoer.types import Task

Verdict = Literal["PASS", "FAIL", "MARGINAL"]
Supported = Literal["pass", "fail", "inconclusive"]
Region = Literal[
    "above_pass", "below_fail", "between", "straddles_pass", "straddles_fail", "straddles_both", "undefined"
]

PLAIN: dict[str, str] = {
    "pass": "sharing costs something",
    "fail": "sharing is free",
    "inconclusive": "not settled",
}
"""What each supported verdict means, in words that anyone understands."""


class Needed(Record):
    """What would settle on which side of the lines a ratio lies; None where that alone never would."""

    queries: int | None = None
    """Test queries in every collection, with the seeds as they are."""
    seeds: int | None = None
    """Seeds, with the queries as they are."""


class Ratio(Cell):
    """A task interference ratio, in percent."""

    region: Region
    over: str
    """What its interval speaks of: `seeds and queries`, or `queries`."""
    mde: float | None = None
    """Minimum detectable effect in points: the smallest ratio that this study would find with a power of 80%."""
    needed: Needed | None = None
    """None where the interval has settled it."""


class Useful(Record):
    """Whether a specialist is worth having at all."""

    claim: str
    """`the embedding specialist reaches BM25`, or `the reranking specialist improves the order it is given`."""
    difference: Cell
    ok: bool
    """The interval of the difference lies above 0 (reranking), or reaches 0 (embedding)."""


class TaskDecision(Record):
    """One task, on the average over collections or on one of them."""

    specialist: Cell
    joint: Cell
    untrained: Cell
    bm25: Cell
    random: Cell
    tir: Ratio
    difference: Cell
    """Specialist - joint."""
    gain: Cell
    """Specialist - untrained."""
    useful: Useful
    p_value: float | None
    """Over queries and seeds."""
    p_models: float | None = None
    """Over queries alone: speaks of these trained models only."""
    p_holm: float | None = None
    p_bonferroni: float | None = None
    status: Literal["ok", "underpowered"]
    """Underpowered: the specialist does not beat the untrained model beyond doubt, so it has nothing to lose."""
    queries: int


class ConflictMeans(Record):
    mean_cosine: float | None = None
    mean_cosine_corrected: float | None = None
    null_cosine: float | None = None
    negative_share: float | None = None
    reliability_embedding: float | None = None
    reliability_reranking: float | None = None
    noise_ceiling: float | None = None
    """The largest cosine that two noisy estimates of one gradient would show; None where a mean is not positive."""
    magnitude_similarity: float | None = None
    measurements: int = 0


class LayerConflict(ConflictMeans):
    layer: int | str


class Conflicts(ConflictMeans):
    steps: int
    by_layer: list[LayerConflict]


class Method(Record):
    interval: str
    over: str
    """`seeds and queries`, or `queries`."""
    test: str
    families: dict[str, int]


class Decision(Record):
    study: str
    name: str
    verdict: Verdict
    """Of the point estimates, by the rule fixed before the runs."""
    supported: Supported
    """What whole intervals support."""
    plain: str
    """`supported` in plain words."""
    useful: bool
    """Both specialists are; see each task's `useful`."""
    preliminary: bool
    preliminary_reasons: list[str] = []
    criterion: Criterion
    frozen: str
    """SHA-256 of the declaration that it is made under."""
    time: str
    """When that was declared."""
    amendments: list[Amendment] = []
    seeds: list[int]
    budget: str
    tasks: dict[Task, TaskDecision]
    datasets: dict[str, dict[Task, TaskDecision]]
    gradient_conflicts: Conflicts | None = None
    method: Method

    @property
    def metric(self) -> str:
        return self.criterion.metric


class Lead(Record):
    """How far one arm is ahead of another."""

    arm: str
    rival: str
    mean: float | None
    ci95: Interval
