"""Budget: interference and recovery against the length of training, in models that converge."""

from __future__ import annotations

from unimoer.studies import kill_gate
from unimoer.studies.evidence import Evidence
from unimoer.studies.points import estimate_points
from unimoer.studies.study import Estimates, Study


def estimate(evidence: Evidence) -> Estimates:
    return Estimates(points=estimate_points(evidence, x="steps"))


STUDY = Study(
    name="budget",
    title="How does interference change as training goes on?",
    config="converged",
    quick="budget_quick",
    estimate=estimate,
    check=kill_gate.check,
    sections=("points", "scores", "training", "other_suites", "data", "runs", "provenance"),
)
