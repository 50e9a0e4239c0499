"""`results.json`: every score of a study with its interval, what arms cost, and what the study estimates from them."""

from __future__ import annotations

from unimoer.schema.base import Cell, Interval, Record
from unimoer.schema.decision import Lead
from unimoer.schema.plan import ArmPlan, Criterion, Plan
from unimoer.schema.run import Environment, RunStatus, ServingCosts
from unimoer.types import Task


class SystemScore(Record):
    """One system on one collection, or on the average of all."""

    score: Cell
    """Of the criterion's metric."""
    metrics: dict[str, float]
    """Means of all metrics."""
    queries: int
    to_bm25: Cell | None = None
    """Difference to BM25 on the same queries; None of BM25 itself, and where it was not scored."""


class TaskScores(Record):
    macro: dict[str, SystemScore]
    """System -> average over collections, where it was scored on all of them."""
    datasets: dict[str, dict[str, SystemScore]]


class Ceilings(Record):
    """What the candidate lists allow: `recall` and the metric of a perfect order."""

    macro: dict[str, float] = {}
    datasets: dict[str, dict[str, float]] = {}


class ArmCosts(Record):
    train_seconds: float | None = None
    tokens_per_second: float | None = None
    eval_seconds: float | None = None
    peak_memory_mb: float | None = None
    trainable_parameters: int | None = None
    parameters_to_joint: float | None = None
    """How many percent more its adapter and routers have than those of `joint_single`."""
    serving: ServingCosts | None = None


class ArmResult(Record):
    plan: ArmPlan
    costs: ArmCosts
    runs: int
    moved: float | None = None
    """Mean relative change of its routers' parameters in training; an arm with 0 has learned no routing."""


class Recovered(Record):
    """What an arm wins back of what sharing one adapter costs, in percent: 0 is nothing, 100 a specialist's score."""

    mean: float | None = None
    ci95: Interval = (None, None)
    reason: str | None = None
    """Why there is none."""


class ArmTask(Record):
    """An arm on one task, beside the shared LoRA and the specialist."""

    score: Cell
    tir: Cell
    difference: Cell
    """To the shared LoRA."""
    to_start: Cell | None = None
    """To the same arm with its routers left as they began; None where nothing is learned about routing."""
    recovery: Recovered
    p_value: float | None
    p_models: float | None = None
    p_holm: float | None = None
    p_bonferroni: float | None = None
    mde: float | None = None
    """Smallest difference that would be found with a power of 80%."""


class Ranking(Record):
    """Arms from best to worst, and what the intervals can tell apart."""

    order: list[str]
    lead: Lead | None = None
    not_told_apart: list[str] = []
    """Rivals that an interval widened for having picked the best cannot tell from it."""
    confidence: float
    learned: Lead | None = None
    """The best learned router against the best arm without one."""


class TaskRecovery(Record):
    lost: Cell
    arms: dict[str, ArmTask]
    ranking: Ranking


class OverallArm(Record):
    """An arm over both tasks: the mean of its two interference ratios."""

    tir: Cell
    difference: Cell
    """How much less it loses than the shared LoRA."""
    to_start: Cell | None = None


class Recovery(Record):
    baseline: str
    families: dict[str, int]
    tasks: dict[Task, TaskRecovery]
    datasets: dict[str, dict[Task, dict[str, ArmTask]]]
    arms: dict[str, OverallArm]
    ranking: Ranking


class TaskRouting(Record):
    weights: list[float]
    entropy: float | None = None
    active_experts: float | None = None
    one_expert_share: float | None = None
    steps: tuple[int, int]


class RouterSummary(Record):
    """One router at the end of training, over seeds."""

    router: str
    layer: int
    experts: list[str]
    units: int
    mutual_information: float | None = None
    """Bits that the task says about the expert: mean over seeds."""
    per_seed: dict[str, float | None] = {}
    of_mean_weights: float | None = None
    """Of the weights averaged over seeds; far below the mean where seeds give experts different roles."""
    within_task: float | None = None
    """The same between two halves of one task's batches: noise."""
    at_start: float | None = None
    tasks: dict[Task, TaskRouting]


class RoutingSummary(Record):
    seeds: list[int]
    experts: list[str]
    units: int
    mutual_information: float | None = None
    within_task: float | None = None
    at_start: float | None = None
    routers: list[RouterSummary]


class Point(Record):
    """One point of a curve or grid: an arm of a variant at a step, on one task."""

    variant: str
    arm: str
    step: int | None = None
    """Steps of a task; None for the end of the run."""
    task: Task
    x: dict[str, float] = {}
    """Coordinates by name: `steps`, `layers`, `trainable`, `total`, `rank`, `experts`."""
    seeds: list[int]
    score: Cell
    tir: Cell | None = None
    """Against the specialist of the same variant and step."""
    recovery: Recovered | None = None
    to_bm25: Cell | None = None
    mde: float | None = None


class Points(Record):
    x: str
    """The coordinate that figures are drawn over."""
    points: list[Point]


class RunResult(Record):
    folder: str
    status: RunStatus
    key: str


class Provenance(Record):
    """Of all runs; fields in which they differ are listed."""

    environment: Environment
    differing: dict[str, dict[str, str]] = {}
    """Field -> run -> its value."""
    base: dict[str, str] = {}
    """Variant -> identity of the frozen base's content."""
    settings: dict[str, str] = {}
    """Resolved settings that a number depends on, such as layers, learning rate, dtype, text limits."""
    first_run: str | None = None
    last_run: str | None = None


class Results(Record):
    study: str
    name: str
    sections: list[str]
    """Sections of the report, in order."""
    plan: Plan
    suite: str
    """The suite that decides."""
    criterion: Criterion
    scores: dict[str, dict[Task, TaskScores]]
    """Variant -> task -> scores on the deciding suite."""
    other_suites: dict[str, dict[Task, TaskScores]] = {}
    """Suite -> task -> scores of the first variant."""
    ceilings: Ceilings = Ceilings()
    arms: dict[str, ArmResult]
    runs: list[RunResult]
    recovery: Recovery | None = None
    routing: dict[str, RoutingSummary] = {}
    points: Points | None = None
    provenance: Provenance
