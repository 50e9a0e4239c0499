"""What each arm is, as planned, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unimoer.config import JOINT
from unimoer.schema.results import ArmCosts, ArmResult
from unimoer.schema.run import ServingCosts
from unimoer.studies.evidence import Evidence, RunFolder


def describe_arms(evidence: Evidence) -> dict[str, ArmResult]:
    """Arm of the first variant -> its plan and its costs: means over its runs, and the largest peak of memory."""
    plans = evidence.plan.declared.arms[evidence.variants[0]]
    joint = plans.get(JOINT)
    found = {}
    for name, plan in plans.items():
        runs = evidence.arm_runs(name)
        size = plan.adapter_parameters + plan.router_parameters
        wanted = joint.adapter_parameters + joint.router_parameters if joint else 0
        costs = _costs(runs).model_copy(
            update={"parameters_to_joint": 100.0 * (size / wanted - 1.0) if wanted else None}
        )
        moved = _mean([run.status.training.router_moved for run in runs if run.status.training])
        found[name] = ArmResult(plan=plan, costs=costs, runs=len(runs), moved=moved)
    return found


def _costs(runs: Sequence[RunFolder]) -> ArmCosts:
    training = [run.status.training for run in runs if run.status.training is not None]
    serving = [run.status.serving for run in runs if run.status.serving is not None]
    return ArmCosts(
        train_seconds=_mean([one.train_seconds for one in training]),
        tokens_per_second=_mean([one.tokens_per_second for one in training]),
        eval_seconds=_mean([run.status.eval_seconds for run in runs]),
        peak_memory_mb=max((run.status.peak_memory_mb for run in runs), default=None),
        trainable_parameters=max((one.trainable_parameters for one in training), default=None),
        serving=_serving(serving) if serving else None,
    )


def _serving(costs: Sequence[ServingCosts]) -> ServingCosts:
    means = {name: _mean([getattr(one, name) for one in costs]) for name in ServingCosts.model_fields}
    return ServingCosts.model_validate(means)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
