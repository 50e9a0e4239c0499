"""Experiment 2, scale: interference against depth and size of the base."""

from __future__ import annotations

from unimoer.studies import kill_gate
from unimoer.studies.evidence import Evidence
from unimoer.studies.points import estimate_points
from unimoer.studies.study import Estimates, Study


def estimate(evidence: Evidence) -> Estimates:
    return Estimates(points=estimate_points(evidence, x="total"))


STUDY = Study(
    name="scale",
    title="How does interference change with the size of the base?",
    config="scale",
    quick="scale_quick",
    estimate=estimate,
    check=kill_gate.check,
    sections=("points", "scores", "training", "other_suites", "data", "runs", "provenance"),
)
