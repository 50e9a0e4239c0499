"""What a reader needs to judge or repeat the measurement."""

from __future__ import annotations

from unimoer.report.section import Note, Section
from unimoer.report.study import StudyFolder


def build(study: StudyFolder) -> Section | None:
    found, plan = study.results.provenance, study.results.plan
    environment = found.environment
    hardware = environment.hardware
    described = [
        *([hardware.cpu] if hardware.cpu else []),
        *([f"{hardware.cores} cores"] if hardware.cores else []),
        *([f"{hardware.memory_gb:g} GB memory"] if hardware.memory_gb else []),
        f"device {hardware.device}" + (f", {hardware.gpu}" if hardware.gpu else ""),
    ]
    commit = environment.git_commit or "unknown"
    packages = [f"{name} {version}" for name, version in sorted(environment.packages.items())]
    python = [f"Python {environment.python}"] if environment.python else []
    rows: list[tuple[str, list[str], bool]] = [
        ("Commands", plan.commands, True),
        ("Commit", [commit + (" with uncommitted changes" if environment.git_dirty else "")], True),
        ("Settings", [f"{name}: {value}" for name, value in found.settings.items()], True),
        ("Base", [f"{variant or 'all runs'}: {digest}" for variant, digest in found.base.items()], True),
        ("Hardware", [", ".join(described)], False),
        ("Packages", [", ".join([*python, *packages])] if python or packages else [], False),
        ("Seeds", [", ".join(map(str, study.seeds))], False),
        ("Declared", [f"{plan.time}, SHA-256 {plan.frozen}"], True),
        ("Training data", [f"{name}: {digest}" for name, digest in sorted(environment.data.items())], True),
        ("Runs", [f"{run.folder}: training key {run.key}" for run in study.results.runs], True),
        ("First and last run", [" to ".join(filter(None, (found.first_run, found.last_run)))], False),
        ("Runs differ in", [_differing(field, runs) for field, runs in found.differing.items()], False),
    ]
    return Section("Provenance", notes=[Note(title, lines, code=code) for title, lines, code in rows if any(lines)])


def _differing(field: str, runs: dict[str, str]) -> str:
    values: dict[str, list[str]] = {}
    for run, value in runs.items():
        values.setdefault(value, []).append(run)
    return f"{field}: " + "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items())
