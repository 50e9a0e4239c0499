"""Assembles the report of a study: tables, figures, `report.html` in one file and `report.md`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from unimoer.files import write_text
from unimoer.report import text
from unimoer.report.figures import FigureFile, write_figures
from unimoer.report.notices import notices
from unimoer.report.section import Section
from unimoer.report.sections import build_sections
from unimoer.report.study import StudyFolder

Figures = Mapping[str, FigureFile]


def build_report(folder: Path) -> Path:
    """Write tables, figures, report.md and report.html from a study's files; returns the path of the page.

    Needs `results.json`; a decision, and the logs of runs, are shown where there are any. The page holds everything in
    itself and asks the network for nothing.

    Raises:
        UserError: a file is missing or broken, or names a section that does not exist.
    """
    study = StudyFolder.read(Path(folder))
    sections = build_sections(study)
    for table in (table for section in sections.values() for table in (*section.tables, *section.folded)):
        write_text(study.folder / "tables" / f"{table.name}.md", table.markdown())
        write_text(study.folder / "tables" / f"{table.name}.tex", table.latex())
    drawings = [drawing for section in sections.values() for drawing in section.drawings]
    figures = write_figures(study.folder, drawings)
    write_text(study.folder / "report.md", render_markdown(study, sections, figures))
    page = study.folder / "report.html"
    write_text(page, render_html(study, sections, figures))
    return page


def render_html(study: StudyFolder, sections: Mapping[str, Section], figures: Figures) -> str:
    """The page as text. Everything from files is escaped; only the figures' SVG is inserted as it is."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unimoer.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2").render(
        study=study,
        subtitle=_subtitle(study),
        notices=notices(study),
        lead=_lead(sections),
        sections=sections,
        svg={name: Markup(figure.svg) for name, figure in figures.items()},
    )


def render_markdown(study: StudyFolder, sections: Mapping[str, Section], figures: Figures) -> str:
    """The same content in short, for a repository or an issue; figures are linked, folded tables left out."""
    lines = [f"# {study.results.name}", "", ", ".join(_subtitle(study)) + ".", ""]
    lines += [f"> {notice}\n" for notice in notices(study)]
    for section in sections.values():
        lead = section.lead
        if lead is not None:
            preliminary = " (preliminary)" if lead.preliminary else ""
            lines += [f"**{lead.headline}.** {lead.badge}{preliminary}", "", "\n\n".join(lead.sentences), ""]
            lines += [*(f"- Preliminary: {reason}." for reason in lead.preliminary), ""]
        lines += [f"## {section.title}", ""]
        lines += [f"{paragraph}\n" for paragraph in section.paragraphs]
        lines += [
            f"![{figure.title}](figures/{figure.name}.png)\n\n*{figure.caption}*\n"
            for figure in (figures[drawing.name] for drawing in section.drawings)
        ]
        lines += [table.markdown() for table in section.tables]
        lines += [f"- **{note.title}.** {'; '.join(note.lines)}" for note in section.notes]
        lines += [""] if section.notes else []
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _lead(sections: Mapping[str, Section]) -> Section | None:
    return next((section for section in sections.values() if section.lead is not None), None)


def _subtitle(study: StudyFolder) -> list[str]:
    results = study.results
    suite = results.plan.declared.suites.get(results.suite)
    found = [*([f"study {results.study}"] if results.study != results.name else []), f"suite {results.suite}"]
    if suite is not None:
        queries = sum(collection.queries for collection in suite.collections.values())
        found += [text.plural(len(suite.collections), "collection"), f"{queries:,} test queries"]
    return [*found, f"{'seed' if len(study.seeds) == 1 else 'seeds'} {', '.join(map(str, study.seeds))}"]
