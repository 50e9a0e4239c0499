"""The kill gate: do two specialists beat one adapter that was trained on both tasks?"""

from __future__ import annotations

from collections.abc import Sequence

from unimoer.config import JOINT, SPECIALIST, StudyConfig
from unimoer.errors import UserError
from unimoer.evaluation.first_stage import is_shared
from unimoer.studies import interference, recovery
from unimoer.studies.evidence import Evidence
from unimoer.studies.routing_summary import summarise_routing
from unimoer.studies.study import Estimates, Families, Study
from unimoer.types import Task


def check(config: StudyConfig) -> None:
    """Raises: UserError when the arms that the verdict compares are not all there, or rerank different lists."""
    needed = [*SPECIALIST.values(), JOINT]
    missing = [name for name in needed if name not in config.arms]
    if missing:
        raise UserError(
            f"arms: the verdict compares {', '.join(needed)}, and '{missing[0]}' is not among them; add it, or train "
            "single arms with `unimoer train`"
        )
    if not is_shared(config.evaluation.suites[config.suite].first_stage):
        raise UserError(
            f"evaluation.suites.{config.suite}.first_stage: with 'dense' every arm reranks a list of its own, and what "
            "sharing costs its reranker cannot be told from its search; name bm25 or run files, or put another suite "
            "first"
        )


def check_verdict(config: StudyConfig) -> None:
    """Raises: UserError when there is not exactly one point to decide on."""
    check(config)
    if len(config.variants) > 1:
        raise UserError(
            f"variants: a verdict is about one point, and there are {len(config.variants)}; `unimoer run scale` "
            "estimates them all"
        )


def families(config: StudyConfig, collections: Sequence[str]) -> Families:
    """The two tasks; and, where there are other joint arms, each of them against the shared LoRA."""
    others = [arm for arm in config.arms if arm != JOINT and set(config.arm(arm).tasks) == set(Task)]
    return interference.families(collections) | (recovery.families(others, collections) if others else {})


def estimate(evidence: Evidence) -> Estimates:
    routing = {
        arm: found for arm in evidence.joint_arms() if (found := summarise_routing(evidence.arm_runs(arm))) is not None
    }
    return Estimates(interference.decide(evidence), recovery.recover(evidence), routing)


STUDY = Study(
    name="kill-gate",
    title="Does sharing one adapter cost either task anything?",
    config="full",
    quick="quick",
    estimate=estimate,
    families=families,
    check=check_verdict,
    starts=True,
    sections=(
        "verdict",
        "scores",
        "arms",
        "routing",
        "conflicts",
        "training",
        "other_suites",
        "data",
        "runs",
        "provenance",
    ),
)
