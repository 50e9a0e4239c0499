"""What every run cost."""

from __future__ import annotations

from unimoer.report import text
from unimoer.report.section import Section
from unimoer.report.study import StudyFolder
from unimoer.report.table import Cell, Table


def build(study: StudyFolder) -> Section | None:
    rows: list[list[Cell | str]] = []
    order = {arm: index for index, arm in enumerate(study.arms)}
    for run in sorted(
        study.results.runs, key=lambda run: (run.status.variant, order.get(run.status.arm, len(order)), run.status.seed)
    ):
        training = run.status.training
        if training is not None:
            rows.append(
                [
                    *([run.status.variant] if len(study.variants) > 1 else []),
                    run.status.arm,
                    str(run.status.seed),
                    text.duration(training.train_seconds),
                    text.duration(run.status.eval_seconds),
                    text.count(training.steps),
                    text.count(training.tokens_per_second),
                    text.percent(100 * training.padding_waste),
                    text.gibibytes(max(training.peak_memory_mb, run.status.peak_memory_mb)),
                    text.count(training.trainable_parameters),
                ]
            )
    if not rows:
        return None
    variant = ["Variant"] if len(study.variants) > 1 else []
    columns = ["Seed", "Training", "Evaluation", "Steps", "Tokens/s", "Padding", "Peak memory", "Trainable"]
    table = Table("runs", "Cost of every run", [*variant, "Arm", *columns], rows, text_columns=1 + len(variant))
    return Section("Runs", folded=[table]) if len(rows) > 12 else Section("Runs", tables=[table])
