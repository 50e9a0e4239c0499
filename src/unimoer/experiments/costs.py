"""What each arm is, as planned, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unimoer.experiments.results import JOINT, Experiment

_MEANS = ("train_seconds", "tokens_per_second", "eval_seconds")
_SIZES = ("adapter_parameters", "router_parameters")


def describe_costs(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Arm -> its settings from the plan, and its costs: means over its runs, and the largest peak of memory.

    `serving` holds what `evaluation.serving` measured; empty for runs from before it did.
    `parameters_to_joint` is how many percent more its adapter and routers have than those of `joint_single`.
    """
    found = {arm: _arm(experiment, arm) for arm in experiment.plan["arms"]}
    reference = found[JOINT]["costs"] if JOINT in found else {}
    for arm in found.values():
        arm["costs"]["parameters_to_joint"] = _relative_size(arm["costs"], reference)
    return found


def _arm(experiment: Experiment, arm: str) -> dict[str, Any]:
    settings = experiment.arm_settings.get(arm)
    statuses = [run.status for run in experiment.arm_runs(arm)]
    known = {
        key: [float(status[key]) for status in statuses if status.get(key) is not None]
        for key in (*_MEANS, "peak_memory_mb", "trainable_parameters")
    }
    costs: dict[str, Any] = {key: math.fsum(known[key]) / len(known[key]) if known[key] else None for key in _MEANS}
    costs["peak_memory_mb"] = max(known["peak_memory_mb"], default=None)
    costs["trainable_parameters"] = int(max(known["trainable_parameters"])) if known["trainable_parameters"] else None
    costs |= {key: settings.get(key) if settings else None for key in _SIZES}
    measured = [status["serving"] for status in statuses if status.get("serving")]
    costs["serving"] = {
        key: math.fsum(one[key] for one in measured) / len(measured)
        for key in (measured[0] if measured else {})
        if all(key in one for one in measured)
    }
    return {"settings": settings, "costs": costs, "runs": len(statuses)}


def _relative_size(costs: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """Where the plan has no sizes, of all that was trained: score heads are the same for all that rerank."""
    sizes = [
        arm.get("trainable_parameters") if arm.get(_SIZES[0]) is None else sum(arm[key] or 0 for key in _SIZES)
        for arm in (costs, reference)
    ]
    return 100.0 * (sizes[0] / sizes[1] - 1.0) if sizes[0] is not None and sizes[1] else None
