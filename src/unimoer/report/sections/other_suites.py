"""Scores on suites that do not decide anything."""

from __future__ import annotations

from unimoer.report.section import Section
from unimoer.report.sections.scores import score_table
from unimoer.report.study import StudyFolder


def build(study: StudyFolder) -> Section | None:
    if not study.results.other_suites:
        return None
    return Section(
        "Other suites",
        paragraphs=["These scores take no part in any decision."],
        tables=[
            score_table(study, task, scores, f"scores_{suite}", note=f", suite {suite}", suite=suite)
            for suite, by_task in study.results.other_suites.items()
            for task, scores in by_task.items()
        ],
    )
