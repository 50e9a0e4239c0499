"""`plan.json`: what a study declared before its first run, and what was changed afterwards."""

from __future__ import annotations

from typing import Literal

from unimoer.schema.base import Record
from unimoer.types import Schedule, Task

FORMAT = 2
"""Of the whole folder: raise it when older folders can no longer be read."""


class Criterion(Record):
    """Lines in percent: PASS if either task reaches `pass_at`, FAIL if both stay under `fail_below`."""

    metric: str = "ndcg@10"
    pass_at: float = 2.0
    fail_below: float = 1.0


class ArmPlan(Record):
    """What an arm is, in one variant of a study."""

    tasks: list[Task]
    schedule: Schedule = Schedule.ALTERNATING
    router: str | None = None
    """Type of its router; None for one LoRA."""
    granularity: str | None = None
    learned: bool = False
    """Whether its router is trained."""
    reads_text: bool = False
    told_task: bool = False
    task_prior: float = 0.0
    null_of: str | None = None
    """The arm of which this is the untrained start."""
    rank_wise: bool = False
    experts: dict[str, int | list[int]] = {}
    gradients: str = "sum"
    adapter_parameters: int
    router_parameters: int = 0
    base_parameters: int = 0
    layers: int = 0
    steps: dict[Task, int] = {}


class DomainPlan(Record):
    """What is trained on."""

    source: str
    documents: int
    queries: int
    fingerprint: str
    held_out: int = 0
    """Documents that only other splits ask for, kept out of training."""
    notes: str = ""


class CollectionPlan(Record):
    """What is evaluated on."""

    source: str
    split: str
    documents: int
    queries: int
    fingerprint: str
    seen: int = 0
    """Relevant documents that were positives in training."""
    relevant: int = 0
    """Relevant documents in all."""
    distractors: int = 0
    """Documents that are neither relevant to a test query nor a positive in training."""
    split_identifiers: bool = False
    instruction: str | None = None
    ignore_identical_ids: bool = False
    notes: str = ""

    @property
    def overlap(self) -> str:
        """In words, counted rather than declared."""
        if not self.seen:
            return "relevant documents unseen in training"
        return f"{self.seen / max(1, self.relevant):.0%} of the relevant documents seen in training"


class SuitePlan(Record):
    collections: dict[str, CollectionPlan]
    first_stage: str
    candidates: str = ""
    """SHA-256 of the run files that the first stage reads; empty where candidates are computed."""
    depth: int
    first_stage_weight: float | None = None


class PlannedRun(Record):
    arm: str
    seed: int
    folder: str
    variant: str = ""


class Declaration(Record):
    """What is fixed before the first run: everything that a verdict could be bent with afterwards."""

    study: str
    criterion: Criterion
    budget: str
    seeds: list[int]
    arms: dict[str, dict[str, ArmPlan]]
    """Variant -> arm -> what it is; the variant is empty where a study has one."""
    families: dict[str, list[str]]
    """Comparisons that are corrected together, by family."""
    training: dict[str, str]
    """`VARIANT:ARM` -> hash of the settings of its runs, so that a changed learning rate shows."""
    domains: dict[str, DomainPlan]
    suite: str
    """The one that decides."""
    suites: dict[str, SuitePlan]
    checkpoints: list[int] = []


class Amendment(Record):
    """A change of the declaration after the first run."""

    time: str
    changes: list[str]
    """`criterion.pass_at: 2 -> 7`, one line each."""


class Plan(Record):
    format: Literal[2] = 2
    name: str
    commands: list[str]
    """Every command that worked in this folder, oldest first, quoted for a shell."""
    declared: Declaration
    """The current one; the same as the first where there is no amendment."""
    frozen: str
    """SHA-256 of the first declaration."""
    first: Declaration | None = None
    """The first declaration, where amendments have changed it since."""
    time: str
    """Of the first run."""
    amendments: list[Amendment] = []
    runs: list[PlannedRun]
