"""What a report is made of: the files of one study's folder, read and checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from unimoer.report.text import metric_label
from unimoer.schema import ConflictLine, Decision, Record, Results, TaskDecision, TrainingLine, read_lines, read_record
from unimoer.schema.plan import Amendment
from unimoer.schema.results import ArmResult, RunResult, TaskScores
from unimoer.types import Task

BM25, RANDOM, UNTRAINED = "bm25", "random", "untrained"
_LABELS = {BM25: "BM25", RANDOM: "Random order", UNTRAINED: "Untrained"}
SHARED = "One shared LoRA"
Line = TypeVar("Line", bound=Record)


@dataclass(frozen=True)
class StudyFolder:
    """The results of a study, its decision where it makes one, and the logs of its runs."""

    folder: Path
    results: Results
    decision: Decision | None = None
    amended: Sequence[Decision] = field(default_factory=list)
    """Decisions made anew after the declaration was changed, oldest first."""

    @classmethod
    def read(cls, folder: Path) -> StudyFolder:
        """Raises UserError in one line for a missing or broken file."""
        results = read_record(Results, folder / "results.json", "`unimoer analyze` writes it from a finished study")
        amended = sorted(
            (read_record(Decision, path) for path in folder.glob("decision-*.json")),
            key=lambda decision: [amendment.time for amendment in decision.amendments],
        )
        first = folder / "decision.json"
        if first.exists():
            return cls(folder, results, read_record(Decision, first), amended)
        # A plan that was changed before its runs were done: its own decision was never made.
        return cls(folder, results, amended[0] if amended else None, amended[1:])

    @property
    def metric(self) -> str:
        return self.results.criterion.metric

    @property
    def metric_label(self) -> str:
        return metric_label(self.metric)

    @property
    def seeds(self) -> list[int]:
        return self.results.plan.declared.seeds

    @property
    def amendments(self) -> list[Amendment]:
        """Every change of the declaration after the first run."""
        found = [amendment for decision in self.amended for amendment in decision.amendments]
        found += [*self.results.plan.amendments, *(self.decision.amendments if self.decision else [])]
        return sorted({item.time + "".join(item.changes): item for item in found}.values(), key=lambda item: item.time)

    @cached_property
    def variants(self) -> list[str]:
        """In the order of the plan; files sort their keys."""
        planned = [run.variant for run in self.results.plan.runs]
        return list(dict.fromkeys([name for name in planned if name in self.results.scores] + [*self.results.scores]))

    @cached_property
    def arms(self) -> list[str]:
        """In the order of the plan."""
        planned = [run.arm for run in self.results.plan.runs]
        return list(dict.fromkeys([arm for arm in planned if arm in self.results.arms] + [*self.results.arms]))

    @property
    def joint_arms(self) -> list[str]:
        """Arms that train more than one task."""
        return [arm for arm in self.arms if len(self.results.arms[arm].plan.tasks) > 1]

    def specialist(self, task: Task) -> str | None:
        return next((arm for arm in self.arms if self.results.arms[arm].plan.tasks == [task]), None)

    @cached_property
    def shared(self) -> str | None:
        """The arm with one LoRA for both tasks, to which others are compared."""
        if self.results.recovery:
            return self.results.recovery.baseline
        return next((arm for arm in self.joint_arms if self.results.arms[arm].plan.router is None), None)

    def label(self, system: str) -> str:
        """A system's name for readers; arms other than specialists and the shared LoRA go by their own."""
        for task in Task:
            if system == self.specialist(task):
                return f"{task.capitalize()} specialist"
        return SHARED if system == self.shared else _LABELS.get(system, system)

    def given(self, suite: str) -> str:
        """What the row of BM25 is in a suite's reranking: the order of the candidates, whoever made it."""
        plan = self.results.plan.declared.suites.get(suite)
        first = "bm25" if plan is None else plan.first_stage
        names = {"bm25": self.label(BM25), "dense": f"{self.label(BM25)}, candidates of its own"}
        return names.get(first, f"Order given, {first.rstrip('/').rpartition('/')[2]}")

    def learned(self, arm: str) -> bool:
        """Whether the arm's routing was learned: declared so, and not found unmoved after training."""
        found: ArmResult = self.results.arms[arm]
        return found.plan.learned and found.moved != 0

    def decided(self, task: Task, collection: str | None) -> TaskDecision | None:
        """The decision on one collection, or on the average of all for None."""
        if self.decision is None:
            return None
        found = self.decision.tasks if collection is None else self.decision.datasets.get(collection, {})
        return found.get(task)

    def systems(self, task: Task, scores: TaskScores) -> list[str]:
        """References first, then the task's specialist, then joint arms."""
        present = {system for found in (scores.macro, *scores.datasets.values()) for system in found}
        order = [BM25, RANDOM, UNTRAINED, self.specialist(task), *([self.shared] if self.shared else []), *self.arms]
        return list(dict.fromkeys([name for name in order if name in present] + sorted(present)))

    def runs(self, arm: str | None) -> list[RunResult]:
        """Runs of an arm in the first variant, by seed."""
        first = self.variants[0] if self.variants else ""
        found = [run for run in self.results.runs if run.status.arm == arm and run.status.variant == first]
        return sorted(found, key=lambda run: run.status.seed)

    def losses(self, run: RunResult) -> list[TrainingLine]:
        return self._log(run, TrainingLine, "metrics.jsonl", ("step", "task"))

    def conflicts(self, run: RunResult) -> list[ConflictLine]:
        return self._log(run, ConflictLine, "gradient_conflicts.jsonl", ("step", "layer"))

    def _log(self, run: RunResult, model: type[Line], name: str, identity: Sequence[str]) -> list[Line]:
        return read_lines(model, self.folder / "runs" / run.folder / name, identity)
