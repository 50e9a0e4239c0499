"""What an experiment with retrieval-augmented generation writes: its plan, questions, answers, costs and results."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from unimoer.schema.base import Cell, Record
from unimoer.schema.run import Environment


class RagQuestion(Record):
    """One line of `asked/NAME.questions.jsonl`."""

    id: str
    question: str
    """What the generator is asked."""
    answers: list[str] = Field(min_length=1)
    """Each of them counts as right."""
    query: str | None = None
    """What is searched for; None: the question itself."""
    passages: list[str] = []
    """Ids of the passages that are known to answer it; empty where nobody says."""


class RagAnswer(Record):
    """One line of `systems/SYSTEM/NAME.jsonl`: what became of one question."""

    id: str
    answer: str
    exact_match: float
    """1 where the normalised answer is an accepted one, otherwise 0."""
    f1: float
    contains: float
    """1 where an accepted answer is in the answer, otherwise 0."""
    answer_recall: float | None
    """1 where an accepted answer is in the passages; None without retrieval, and of yes and no."""
    passage_recall: float | None
    """Share of the passages known to answer that were read; None where there are none, and without retrieval."""
    passages: list[str]
    """Ids, best first."""
    milliseconds: dict[str, float]
    """Of each stage: `embed`, `dense`, `bm25`, `rerank`, `generate`."""


class RagAsked(Record):
    """One set of questions, as it was prepared."""

    questions: int
    passages: int
    fingerprint: str
    """SHA-256 over both files."""
    left_out: dict[str, int] = {}
    """Why questions of the source were not taken, and how many."""


class RagPlan(Record):
    """`plan.json`: what the folder is about. A command of other settings is refused."""

    config: dict[str, Any]
    device: str
    asked: dict[str, RagAsked]


class RagCosts(Record):
    """`systems/SYSTEM/costs.json`: a fresh process that loads the system and answers the first questions of a set."""

    models: dict[str, str]
    """Part (`embedder`, `reranker`, `generator`) -> its name and, of ours, its identity."""
    weights_mb: float
    """MiB of all its models' weights; a tensor that two parts share counts once."""
    runtime_mb: float
    """MiB of the process before anything was loaded."""
    loaded_mb: float
    """MiB with everything loaded and freed memory handed back."""
    peak_mb: float
    """Largest MiB while answering; on a GPU all three are of its memory."""
    questions: int
    asked: str
    """The set that they are of."""
    threads: int
    environment: Environment


class RagLatency(Record):
    median: float
    p95: float


class RagScores(Record):
    """Means over questions, with 95% intervals over questions."""

    questions: int
    measures: dict[str, Cell]
    """`exact_match`, `f1`, `contains`, `answer_recall`, `passage_recall`; those that the set and system have."""


class RagSystem(Record):
    macro: RagScores
    """Average over sets, of the measures that all of them have."""
    sets: dict[str, RagScores]
    milliseconds: dict[str, dict[str, RagLatency]]
    """Set -> stage -> over its questions; `retrieve` is embedding and search, `total` everything."""
    costs: RagCosts


class RagDifference(Record):
    """First minus second, paired by question."""

    first: str
    second: str
    macro: dict[str, Cell]
    """By measure."""
    sets: dict[str, dict[str, Cell]]


class RagResults(Record):
    """`results.json`."""

    name: str
    command: str
    plan: RagPlan
    systems: dict[str, RagSystem]
    differences: list[RagDifference]
