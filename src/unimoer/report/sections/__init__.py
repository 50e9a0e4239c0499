"""The sections that a study may name in `Results.sections`: one file each, built from the files of its folder alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unimoer.errors import UserError, did_you_mean
from unimoer.report.section import Section
from unimoer.report.sections import (
    arms,
    conflicts,
    data,
    other_suites,
    points,
    provenance,
    routing,
    runs,
    scores,
    training,
    verdict,
)
from unimoer.report.study import StudyFolder

SECTIONS: Mapping[str, Callable[[StudyFolder], Section | None]] = {
    "verdict": verdict.build,
    "points": points.build,
    "scores": scores.build,
    "other_suites": other_suites.build,
    "arms": arms.build,
    "routing": routing.build,
    "conflicts": conflicts.build,
    "training": training.build,
    "runs": runs.build,
    "data": data.build,
    "provenance": provenance.build,
}


def build_sections(study: StudyFolder) -> dict[str, Section]:
    """The sections that the study names and has anything for, in its order."""
    found = {}
    for name in study.results.sections:
        if name not in SECTIONS:
            where = study.folder / "results.json"
            raise UserError(f"{where}: sections: unknown section '{name}'{did_you_mean(name, SECTIONS)}")
        section = SECTIONS[name](study)
        if section is not None:
            found[name] = section
    return found
