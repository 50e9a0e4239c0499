"""Studies: each says which runs it needs, what it estimates from their scores, and which sections its report has.

A new one is a file with a `Study` and one line in `STUDIES`.
"""

from unimoer.errors import UserError, did_you_mean
from unimoer.studies import ablation, budget, kill_gate, routing, scale
from unimoer.studies.study import Study

STUDIES: dict[str, Study] = {
    study.name: study for study in (kill_gate.STUDY, routing.STUDY, budget.STUDY, scale.STUDY, ablation.STUDY)
}


def find_study(name: str) -> Study:
    """Raises: UserError for an unknown name, with the nearest one."""
    if name not in STUDIES:
        raise UserError(f"no study '{name}'{did_you_mean(name, STUDIES)}")
    return STUDIES[name]


__all__ = ["STUDIES", "Study", "find_study"]
