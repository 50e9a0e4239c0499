"""All that a study's estimates are made from: its plan, its runs' files, and their per-query scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimoer.config import JOINT, RunSpec
from unimoer.errors import UserError
from unimoer.runs.folder import expected, read_spec
from unimoer.schema import (
    ConflictLine,
    Environment,
    EvaluationSummary,
    Plan,
    RoutingLine,
    RunStatus,
    read_lines,
    read_record,
)
from unimoer.studies.freeze import read_plan
from unimoer.studies.scores import Key, Scores, Table, read_per_query
from unimoer.types import Task

HINT = "repeat the command that started the study"


@dataclass(frozen=True)
class RunFolder:
    """One finished run."""

    folder: Path
    spec: RunSpec
    status: RunStatus
    environment: Environment

    @property
    def arm(self) -> str:
        return self.spec.arm

    @property
    def seed(self) -> int:
        return self.spec.seed

    def routing(self) -> list[RoutingLine]:
        return read_lines(RoutingLine, self.folder / "routing.jsonl", ("step", "task", "router"))

    def conflicts(self) -> list[ConflictLine]:
        return read_lines(ConflictLine, self.folder / "gradient_conflicts.jsonl", ("step", "layer"))


@dataclass(frozen=True)
class Evidence:
    folder: Path
    plan: Plan
    scores: Scores
    runs: Sequence[RunFolder]
    """Empty where only the published scores are there."""
    summaries: Mapping[Key, EvaluationSummary]

    @property
    def suite(self) -> str:
        """The suite that decides."""
        return self.plan.declared.suite

    @property
    def metric(self) -> str:
        return self.plan.declared.criterion.metric

    @property
    def seeds(self) -> list[int]:
        return self.plan.declared.seeds

    @property
    def variants(self) -> list[str]:
        return list(self.plan.declared.arms)

    def table(self, variant: str | None = None, step: int | None = None, suite: str | None = None) -> Table:
        """Scores on the deciding suite, of the first variant where none is named."""
        return self.scores.of(suite or self.suite, self.variants[0] if variant is None else variant, step)

    def joint_arms(self, variant: str | None = None) -> list[str]:
        """Arms beside `joint_single` that serve both tasks, in the plan's order."""
        arms = self.plan.declared.arms[self.variants[0] if variant is None else variant]
        return [name for name, arm in arms.items() if name != JOINT and set(arm.tasks) == set(Task)]

    def arm_runs(self, arm: str, variant: str | None = None) -> list[RunFolder]:
        wanted = self.variants[0] if variant is None else variant
        return [run for run in self.runs if run.arm == arm and run.spec.variant in (wanted, "")]


def read_evidence(folder: Path) -> Evidence:
    """Read everything that the estimates and the report need. Nothing is recomputed and nothing is guessed.

    Where the runs are not there, as in a published folder, scores come from `scores.json.gz` and logs are empty.

    Raises:
        UserError: in one line that names the file: a missing or broken one, a run that is not done, arms with
            different queries.
    """
    plan = read_plan(folder)
    if not (folder / "runs").is_dir():
        scores = Scores.read(folder)
        scores.check_paired()
        return Evidence(folder, plan, scores, (), {})
    scores, summaries, runs = Scores(), {}, []
    for entry in plan.runs:
        run = _read_run(folder / "runs" / Path(entry.folder).name, entry.variant)
        runs.append(run)
        stages = {suite.name: suite.suite.first_stage for suite in run.spec.suites}
        for wanted in expected(run.folder, run.spec):
            measure, file = wanted.measure, wanted.folder / "per_query.jsonl"
            key = Key(
                wanted.suite,
                run.spec.variant,
                run.arm + measure.suffix(stages[wanted.suite]),
                run.seed,
                wanted.step,
                wanted.collection,
                measure.task,
            )
            scores.add(key, read_per_query(file), str(file))
            summaries[key] = read_record(EvaluationSummary, file.with_name("metrics.json"), HINT)
    scores.check_paired()
    return Evidence(folder, plan, scores, runs, summaries)


def _read_run(folder: Path, variant: str) -> RunFolder:
    status = read_record(RunStatus, folder / "status.json", HINT)
    if status.state != "done":
        raise UserError(f"{folder / 'status.json'}: the run is '{status.state}', not done; {HINT}")
    spec = read_spec(folder)
    if spec is None:
        raise UserError(f"{folder / 'config.yaml'}: missing; {HINT}")
    environment = read_record(Environment, folder / "env.json", HINT)
    # A run that variants share lies there once.
    named = {"variant": variant}
    return RunFolder(folder, spec.model_copy(update=named), status.model_copy(update=named), environment)
