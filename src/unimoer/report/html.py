"""Assembles the report of an experiment: tables, figures, `report.html` in one file and `report.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from unimoer.files import write_text
from unimoer.report import wording
from unimoer.report.arms import arm_paragraphs
from unimoer.report.figures import FigureFile, write_figures
from unimoer.report.files import Experiment
from unimoer.report.notes import conflict_paragraphs, reading_notes
from unimoer.report.routing import routing_paragraphs
from unimoer.report.table import Table
from unimoer.report.tables import write_tables
from unimoer.types import Task


def build_report(experiment_dir: Path) -> Path:
    """Write tables, figures, report.md and report.html from the experiment's files; returns the path of the page.

    Needs `decision.json` and `results.json`; draws training curves and gradient conflict where runs left logs. The page
    holds everything in itself and asks the network for nothing.

    Raises UserError for a missing or broken file.
    """
    experiment = Experiment.read(Path(experiment_dir))
    tables = write_tables(experiment)
    figures = write_figures(experiment)
    write_text(experiment.folder / "report.md", render_markdown(experiment, tables, figures))
    page = experiment.folder / "report.html"
    write_text(page, render_html(experiment, tables, figures))
    return page


def render_html(experiment: Experiment, tables: Sequence[Table], figures: Sequence[FigureFile]) -> str:
    """The page as text. Everything from files is escaped; only the figures' SVG is inserted as it is."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unimoer.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    decision = experiment.decision
    return environment.get_template("template.html.j2").render(
        title=f"{_name(experiment)}: {decision['verdict']}",
        name=_name(experiment),
        subtitle=_subtitle(experiment),
        decision=decision,
        headline=wording.headline(decision),
        lead=[wording.task_sentence(task, decision["tasks"][task], experiment.metric) for task in Task],
        interval_sentence=wording.interval_sentence(decision),
        cards=[_card(experiment, task) for task in Task],
        notes=reading_notes(experiment),
        arm_paragraphs=arm_paragraphs(experiment),
        routing_paragraphs=routing_paragraphs(experiment),
        conflict_paragraphs=conflict_paragraphs(decision),
        tables={table.name: table for table in tables},
        figures={figure.name: figure for figure in figures},
        svg={figure.name: Markup(figure.svg) for figure in figures},
        provenance=_provenance(experiment),
        configs=_configs(experiment),
    )


def render_markdown(experiment: Experiment, tables: Sequence[Table], figures: Sequence[FigureFile]) -> str:
    """The same content in short, for a repository or an issue; figures are linked."""
    decision = experiment.decision
    by_name = {table.name: table for table in tables}
    preliminary = ", preliminary" if decision["preliminary"] else ""
    lines = [
        f"# {_name(experiment)}: {decision['verdict']}{preliminary}",
        "",
        f"**{wording.headline(decision)}**",
        "",
        *(wording.task_sentence(task, decision["tasks"][task], experiment.metric) for task in Task),
        wording.interval_sentence(decision),
        "",
        *(f"- Preliminary: {reason}." for reason in decision["preliminary_reasons"]),
        "",
        by_name["tir"].markdown(),
        *_images(figures, "interference", "scores"),
        *(by_name[f"scores_{task}"].markdown() for task in Task),
        *_markdown_arms(experiment, by_name, figures),
        "## How to read this",
        "",
        *(f"- **{note.title}.** {note.text}" for note in reading_notes(experiment)),
        "",
        *_markdown_conflicts(decision, figures),
        "## Runs and data",
        "",
        by_name["runs"].markdown(),
        *_images(figures, "training"),
        by_name["datasets"].markdown(),
        "## Provenance",
        "",
        *(f"- {label}: {'; '.join(found)}" for label, found in _provenance(experiment)),
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _markdown_arms(experiment: Experiment, tables: Mapping[str, Table], figures: Sequence[FigureFile]) -> list[str]:
    paragraphs = arm_paragraphs(experiment)
    if not paragraphs:
        return []
    lines = ["## Arms", "", "\n\n".join(paragraphs), "", *_images(figures, "arms"), tables["arms"].markdown()]
    lines += [tables[f"arms_{task}"].markdown() for task in Task] + [tables["arm_costs"].markdown()]
    routing = routing_paragraphs(experiment)
    if routing:
        lines += ["## Routing", "", "\n\n".join(routing), "", *_images(figures, "routing")]
    return lines + ([tables["routing"].markdown()] if "routing" in tables else [])


def _markdown_conflicts(decision: Mapping[str, Any], figures: Sequence[FigureFile]) -> list[str]:
    paragraphs = conflict_paragraphs(decision)
    if not paragraphs:
        return []
    return ["## Gradient conflict", "", "\n\n".join(paragraphs), "", *_images(figures, "conflicts")]


def _images(figures: Sequence[FigureFile], *names: str) -> list[str]:
    return [
        f"![{figure.title}](figures/{figure.name}.png)\n\n*{figure.caption}*\n"
        for figure in figures
        if figure.name in names
    ]


def _name(experiment: Experiment) -> str:
    return str(experiment.results.get("name") or experiment.folder.name)


def _subtitle(experiment: Experiment) -> list[str]:
    seeds, results = experiment.seeds, experiment.results
    queries = experiment.decision["tasks"][Task.EMBEDDING]["queries"]
    datasets = len(experiment.datasets)
    return [
        *([f"{results['tier']} tier"] if results.get("tier") else []),
        f"{datasets} data {'set' if datasets == 1 else 'sets'}",
        f"{queries:,} test queries",
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
    ]


def _card(experiment: Experiment, task: Task) -> dict[str, Any]:
    """One task's numbers as text, and where they lie on a strip from `-limit` to `limit`, in percent of its width."""
    criterion, cell = experiment.decision["criterion"], experiment.decision["tasks"][task]
    ratio, (low, high) = cell["tir"]["mean"], cell["tir"]["ci95"]
    ends = [
        abs(end) for other in experiment.decision["tasks"].values() for end in other["tir"]["ci95"] if end is not None
    ]
    limit = 1.12 * max([*ends, 2.0 * criterion["pass"]])

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / limit)), 2)

    strip = None
    if ratio is not None and low is not None and high is not None:
        strip = {
            "low": place(low),
            "width": round(place(high) - place(low), 2),
            "mean": place(ratio),
            "fail": place(criterion["fail"]),
            "pass": place(criterion["pass"]),
            "label": f"TIR {wording.percent(ratio)}, 95% interval {wording.bounds([low, high], 1)}",
        }
    change = "keeps its score" if ratio is not None and abs(ratio) < 0.05 else "loses" if (ratio or 0) > 0 else "gains"
    return {
        "task": str(task),
        "change": "has no ratio" if ratio is None else change,
        "ratio": wording.MISSING if ratio is None else wording.percent(abs(ratio)),
        "tir": wording.percent(ratio, signed=True),
        "interval": wording.bounds([low, high], 1),
        "region": wording.region_sentence(cell["tir"]["region"], criterion),
        "strip": strip,
        "fail_label": f"{criterion['fail']:g}%",
        "pass_label": f"{criterion['pass']:g}%",
        "status": cell["status"],
        "rows": [
            ("Untrained base", wording.score(cell["untrained"]["mean"]), ""),
            ("Specialist", wording.score(cell["specialist"]["mean"]), wording.bounds(cell["specialist"]["ci95"])),
            ("Joint, one adapter", wording.score(cell["joint"]["mean"]), wording.bounds(cell["joint"]["ci95"])),
            (
                "Specialist − joint",
                wording.score(cell["difference"]["mean"], signed=True),
                wording.bounds(cell["difference"]["ci95"]),
            ),
            ("p, Holm-corrected", wording.p_value(cell["p_holm"]), ""),
        ],
    }


def _provenance(experiment: Experiment) -> list[tuple[str, list[str]]]:
    """Label and lines of each fact; facts that the files do not hold are left out."""
    results, found = experiment.results, experiment.results["provenance"]
    hardware = dict(found.get("hardware") or {})
    named = {key: hardware.pop(key, None) for key in ("cpu", "cores", "memory_gb", "device")}
    described = [
        *([str(named["cpu"])] if named["cpu"] else []),
        *([f"{named['cores']} cores"] if named["cores"] else []),
        *([f"{named['memory_gb']} GB memory"] if named["memory_gb"] else []),
        *([f"device {named['device']}"] if named["device"] else []),
        *(f"{key} {value}" for key, value in sorted(hardware.items())),
    ]
    commit = str(found.get("git_commit") or "unknown")
    packages = ", ".join(f"{name} {version}" for name, version in sorted((found.get("packages") or {}).items()))
    times = " to ".join(dict.fromkeys(str(found[key]) for key in ("first_run", "last_run") if found.get(key)))
    rows = [
        ("Command", [str(results.get("command") or "unknown")]),
        ("Commit", [commit + (" with uncommitted changes" if found.get("git_dirty") else "")]),
        ("Hardware", [", ".join(described) or "unknown"]),
        ("Packages", [packages] if packages else []),
        ("Seeds", [", ".join(map(str, experiment.seeds))]),
        ("Budget", [str(experiment.decision.get("budget") or "unknown")]),
        ("Runs", [f"{run}, configuration {digest}" for run, digest in sorted(found["config_hash"].items())]),
        ("Data", [f"{name} {digest}" for name, digest in sorted(found["data"].items())]),
        ("First and last run", [times] if times else []),
        ("Runs differ in", [", ".join(sorted(found["differing"]))] if found["differing"] else []),
    ]
    return [(label, lines) for label, lines in rows if lines]


def _configs(experiment: Experiment) -> list[tuple[str, str]]:
    """Each arm's configuration, from its first seed; the others differ in the seed alone."""
    arms: dict[str, str] = {}
    for run in experiment.results["runs"]:
        text = experiment.config(run)
        if text:
            arms.setdefault(str(run["arm"]), text)
    return [(wording.arm_label(arm), text) for arm, text in arms.items()]
