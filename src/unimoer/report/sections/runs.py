"""What every run cost."""

from __future__ import annotations

from unimoer.report import text
from unimoer.report.section import Section
from unimoer.report.study import StudyFolder
from unimoer.report.table import Table


def build(study: StudyFolder) -> Section | None:
    order = {arm: index for index, arm in enumerate(study.arms)}
    runs = sorted(
        (run.status for run in study.results.runs),
        key=lambda run: (run.variant, order.get(run.arm, len(order)), run.seed),
    )
    rows = [(run, run.training) for run in runs if run.training is not None]
    if not rows:
        return None
    several = len(study.variants) > 1
    table = Table.of(
        "runs",
        "Cost of every run",
        rows,
        [
            *([("Variant", lambda row: row[0].variant)] if several else []),
            ("Arm", lambda row: row[0].arm),
            ("Seed", lambda row: str(row[0].seed)),
            ("Training", lambda row: text.duration(row[1].train_seconds)),
            ("Evaluation", lambda row: text.duration(row[0].eval_seconds)),
            ("Steps", lambda row: text.count(row[1].steps)),
            ("Tokens/s", lambda row: text.count(row[1].tokens_per_second)),
            ("Padding", lambda row: text.percent(100 * row[1].padding_waste)),
            ("Peak memory", lambda row: text.gibibytes(max(row[1].peak_memory_mb, row[0].peak_memory_mb))),
            ("Trainable", lambda row: text.count(row[1].trainable_parameters)),
        ],
        text_columns=1 + several,
    )
    return Section("Runs", folded=[table]) if len(rows) > 12 else Section("Runs", tables=[table])
