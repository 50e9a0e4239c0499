"""Experiment 1: the kill gate, and whether routed experts or a hard task switch win back what one adapter loses."""

from __future__ import annotations

from dataclasses import replace

from unimoer.studies import kill_gate

STUDY = replace(
    kill_gate.STUDY,
    name="experiment1",
    title="Do routed experts win back what sharing one adapter costs?",
    arms=("emb_only", "rank_only", "joint_single", "joint_moe", "hard_switch"),
    renamed=("kill-gate", "experiment1"),
)
