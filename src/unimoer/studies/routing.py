"""Experiment 1: the kill gate, and whether routed experts or a hard task switch win back what one adapter loses."""

from __future__ import annotations

from dataclasses import replace

from unimoer.config import JOINT, StudyConfig
from unimoer.errors import UserError
from unimoer.studies import kill_gate
from unimoer.types import Task

ARMS = ("emb_only", "rank_only", "joint_single", "joint_moe", "hard_switch")


def check(config: StudyConfig) -> None:
    """Raises: UserError where there is no verdict, or nothing beside the shared LoRA to compare it with."""
    kill_gate.check(config)
    if not any(arm != JOINT and set(config.arm(arm).tasks) == set(Task) for arm in config.arms):
        raise UserError(f"arms: experiment1 compares other joint arms with {JOINT}; add some: --arms {','.join(ARMS)}")


STUDY = replace(
    kill_gate.STUDY,
    name="experiment1",
    title="Do routed experts win back what sharing one adapter costs?",
    arms=ARMS,
    check=check,
    renamed=("kill-gate", "experiment1"),
)
