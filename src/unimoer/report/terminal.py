"""What a study found, for the end of a command: readable at 80 columns, names never cut."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from unimoer.report.notices import notices
from unimoer.report.section import Lead
from unimoer.report.sections import build_sections
from unimoer.report.study import StudyFolder
from unimoer.report.table import Table

_COLOURS = {"PASS": "magenta", "FAIL": "cyan", "MARGINAL": "yellow"}


def summary(study: StudyFolder | Path) -> RenderableType:
    """The brief parts of every section, in the study's order.

    Raises:
        UserError: a file of the folder is missing or broken.
    """
    study = StudyFolder.read(study) if isinstance(study, Path) else study
    sections = build_sections(study).values()
    parts = [part for section in sections if section.lead for part in _lead(section.lead)]
    parts += [Text(notice, style="yellow") for notice in notices(study)]
    for part in (part for section in sections for part in section.brief):
        parts += [Text(), part.rich() if isinstance(part, Table) else Text(part)]
    return Group(*parts)


def _lead(lead: Lead) -> list[RenderableType]:
    verdict = Text.assemble(
        (f"{lead.headline}.", "bold"),
        "  ",
        (f" {lead.badge} ", f"bold reverse {_COLOURS.get(lead.badge, 'white')}"),
        (" preliminary" if lead.preliminary else "", "yellow"),
    )
    reasons = [Text(f"Preliminary: {reason}.", style="yellow") for reason in lead.preliminary]
    return [Text(), verdict, *(Text(sentence) for sentence in lead.sentences), *reasons]
