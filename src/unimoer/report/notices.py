"""What was changed after the first run, for every study: nobody should have to look for it."""

from __future__ import annotations

from unimoer.report.study import StudyFolder


def notices(study: StudyFolder) -> list[str]:
    """One sentence or two for each amendment of the declaration, and for each decision that was made under one."""
    found = [
        f"Changed after the first run, on {amendment.time}: {'; '.join(amendment.changes)}."
        for amendment in study.amendments
    ]
    for decision in study.amended:
        when = decision.amendments[-1].time if decision.amendments else decision.time
        first = f"; the one declared first gives {study.decision.verdict}" if study.decision else ""
        found.append(f"Under the declaration of {when} the rule gives {decision.verdict} ({decision.plain}){first}.")
    return found
