"""What was trained on, what was evaluated on, and what the two have in common."""

from __future__ import annotations

from unimoer.report.section import Section
from unimoer.report.study import StudyFolder
from unimoer.report.table import Table
from unimoer.schema.plan import CollectionPlan, DomainPlan


def build(study: StudyFolder) -> Section | None:
    declared = study.results.plan.declared
    tables = []
    if declared.domains:
        tables.append(
            Table(
                "domains",
                "Training data",
                ["Domain", "Source", "Documents", "Queries", "Held out"],
                [
                    [
                        name,
                        found.source,
                        *(f"{number:,}" for number in (found.documents, found.queries, found.held_out)),
                    ]
                    for name, found in declared.domains.items()
                ],
                text_columns=2,
                notes="Held out: documents that only other splits ask for, kept out of training. "
                + _notes(declared.domains),
            )
        )
    for suite, plan in declared.suites.items():
        tables.append(
            Table(
                f"collections_{suite}",
                f"Suite {suite}: candidates from {plan.first_stage}, {plan.depth} a query",
                ["Collection", "Source", "Split", "Overlap with training", "Documents", "Queries", "Distractors"],
                [
                    [
                        name,
                        found.source,
                        found.split,
                        found.overlap,
                        *(f"{number:,}" for number in (found.documents, found.queries, found.distractors)),
                    ]
                    for name, found in plan.collections.items()
                ],
                text_columns=4,
                notes="Overlap: counted over the relevant documents that were positives in training. Distractors: "
                "documents that are neither relevant to a query of the split nor a positive in training. "
                + _notes(plan.collections),
            )
        )
    return Section("Data", tables=tables) if tables else None


def _notes(found: dict[str, DomainPlan] | dict[str, CollectionPlan]) -> str:
    return " ".join(f"{name}: {entry.notes.rstrip('.')}." for name, entry in found.items() if entry.notes)
