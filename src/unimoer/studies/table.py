"""The arms of a study for the terminal, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from unimoer.config import JOINT
from unimoer.schema.plan import ArmPlan
from unimoer.types import Schedule


def arms_table(arms: Mapping[str, Mapping[str, ArmPlan]]) -> Iterator[Table]:
    """One table for each variant; every line fits 80 columns as long as names are short."""
    for variant, plans in arms.items():
        table = Table(title=f"arms {variant}".rstrip(), title_justify="left", box=None, pad_edge=False)
        for column in ("arm", "router", "ranks"):
            table.add_column(column, overflow="fold")
        for column in ("parameters", "size"):
            table.add_column(column, justify="right", no_wrap=True)
        joint = plans.get(JOINT)
        for name, plan in plans.items():
            size = plan.adapter_parameters + plan.router_parameters
            more = size / (joint.adapter_parameters + joint.router_parameters) - 1 if joint else None
            ranks = ", ".join(f"{expert} {_span(rank)}" for expert, rank in plan.experts.items())
            table.add_row(name, _words(plan), ranks, f"{size:,}", "" if more is None else f"{more:+.1%}")
        yield table


def _words(plan: ArmPlan) -> str:
    parts = [
        plan.router,
        plan.granularity,
        "told the task" if plan.told_task else None,
        f"prior {plan.task_prior:g}" if plan.task_prior else None,
        "not trained" if plan.null_of else None,
        plan.schedule.value if plan.schedule is not Schedule.ALTERNATING else None,
        plan.gradients if plan.gradients != "sum" else None,
    ]
    return ", ".join(part for part in parts if part)


def _span(rank: int | list[int]) -> str:
    """`8`, or `7-8` for ranks that differ by layer."""
    if isinstance(rank, int):
        return str(rank)
    return str(min(rank)) if min(rank) == max(rank) else f"{min(rank)}-{max(rank)}"
