"""Experiment 8, ablation: ranks and numbers of experts."""

from __future__ import annotations

from unimoer.studies import kill_gate
from unimoer.studies.evidence import Evidence
from unimoer.studies.points import estimate_points
from unimoer.studies.study import Estimates, Study


def estimate(evidence: Evidence) -> Estimates:
    return Estimates(points=estimate_points(evidence, x="trainable"))


STUDY = Study(
    name="ablation",
    title="How large must experts be, and how many?",
    config="ablation",
    quick="ablation_quick",
    estimate=estimate,
    check=kill_gate.check,
    sections=("points", "scores", "training", "other_suites", "data", "runs", "provenance"),
)
