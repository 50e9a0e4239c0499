"""What the routers of an arm had settled on at the end of training: mean weights by layer and task, and how much the
choice of an expert depends on the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unimoer.schema import RoutingLine
from unimoer.schema.results import RouterSummary, RoutingSummary, TaskRouting
from unimoer.studies.evidence import RunFolder
from unimoer.types import Task

LATE = 0.25
"""Share of a task's logged steps that is summarised, from the end."""


@dataclass(frozen=True)
class _Late:
    """One router of one run on one task: the mean of its late lines."""

    experts: list[str]
    routing: TaskRouting
    within: float | None
    at_start: list[float]


def summarise_routing(runs: Sequence[RunFolder]) -> RoutingSummary | None:
    """Routing of one arm over its runs, one a seed; None where no run has logged any, as when the task decides.

    Weights, entropy (over log E), active experts and one-expert share are means over the last quarter of the logged
    steps, then over seeds. Experts have no fixed roles: two seeds may give the same one to different tasks, and the
    mean of their weights would look undecided. So the mutual information is that of each seed, averaged; where
    `of_mean_weights` is far below it, the seeds disagree about the roles. `within_task` is what two halves of the same
    task's lines give: the noise of batches, and more of it than is in the whole. `at_start` is the mutual information
    of the first logged batch of each task, before a router can have learned much: what it was given, as by a prior.
    """
    by_seed = {run.seed: found for run in runs if (found := _summarise_run(run.routing()))}
    if not by_seed:
        return None
    names = sorted({name for found in by_seed.values() for name in found}, key=_place)
    routers = [
        _average(name, {seed: found[name] for seed, found in by_seed.items() if name in found}) for name in names
    ]
    return RoutingSummary(
        seeds=sorted(by_seed),
        experts=list(dict.fromkeys(expert for router in routers for expert in router.experts)),
        units=max(router.units for router in routers),
        mutual_information=_mean([router.mutual_information for router in routers]),
        within_task=_mean([router.within_task for router in routers]),
        at_start=_mean([router.at_start for router in routers]),
        routers=routers,
    )


def mutual_information(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Bits that the task says about the expert, of each task's mean weights, both tasks alike frequent.

    0: the routing is the same for both. 1: no expert serves both. It is the Jensen-Shannon divergence of the two
    distributions. None where one has no weight at all.
    """
    if sum(first) <= 0 or sum(second) <= 0:
        return None
    p, q = ([value / sum(weights) for value in weights] for weights in (first, second))
    mixed = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return min(1.0, max(0.0, _bits(mixed) - (_bits(p) + _bits(q)) / 2))


def _summarise_run(lines: Sequence[RoutingLine]) -> dict[str, dict[Task, _Late]]:
    """Router -> the mean of its late lines by task."""
    groups: dict[str, dict[Task, list[RoutingLine]]] = {}
    for line in lines:
        if line.weights:
            groups.setdefault(line.router, {}).setdefault(line.task, []).append(line)
    return {name: {task: _late(found) for task, found in sorted(by_task.items())} for name, by_task in groups.items()}


def _late(lines: Sequence[RoutingLine]) -> _Late:
    ordered = sorted(lines, key=lambda line: line.step)
    chosen = ordered[-max(1, math.ceil(LATE * len(ordered))) :]
    halves = [_columns([line.weights for line in chosen[start::2]]) for start in (0, 1) if len(chosen) > 1]
    routing = TaskRouting(
        weights=_columns([line.weights for line in chosen]),
        entropy=_mean([line.entropy for line in chosen]),
        active_experts=_mean([line.active_experts for line in chosen]),
        one_expert_share=_mean([line.one_expert_share for line in chosen]),
        steps=(chosen[0].step, chosen[-1].step),
    )
    within = mutual_information(*halves) if halves else None
    return _Late(chosen[-1].experts, routing, within, ordered[0].weights)


def _average(name: str, by_seed: Mapping[int, Mapping[Task, _Late]]) -> RouterSummary:
    """One router, over seeds."""
    tasks: dict[Task, TaskRouting] = {}
    for task in Task:
        found = [by_task[task].routing for by_task in by_seed.values() if task in by_task]
        if found:
            tasks[task] = TaskRouting(
                weights=_columns([one.weights for one in found]),
                entropy=_mean([one.entropy for one in found]),
                active_experts=_mean([one.active_experts for one in found]),
                one_expert_share=_mean([one.one_expert_share for one in found]),
                steps=(min(one.steps[0] for one in found), max(one.steps[1] for one in found)),
            )
    some = next(iter(next(iter(by_seed.values())).values()))
    units = len(some.routing.weights)
    informed = {
        str(seed): _between({task: late.routing.weights for task, late in by_task.items()})
        for seed, by_task in sorted(by_seed.items())
    }
    starts = [_between({task: late.at_start for task, late in by_task.items()}) for by_task in by_seed.values()]
    return RouterSummary(
        router=name,
        layer=_place(name)[0],
        # The units of a rank-wise router have no names.
        experts=some.experts if len(some.experts) == units else [],
        units=units,
        mutual_information=_mean(list(informed.values())),
        per_seed=informed,
        of_mean_weights=_between({task: one.weights for task, one in tasks.items()}),
        within_task=_mean([late.within for by_task in by_seed.values() for late in by_task.values()]),
        at_start=_mean(starts),
        tasks=tasks,
    )


def _between(weights: Mapping[Task, Sequence[float]]) -> float | None:
    """Mutual information, where both tasks were logged."""
    return mutual_information(*(weights[task] for task in Task)) if set(weights) == set(Task) else None


def _place(name: str) -> tuple[int, str]:
    """Layer and projections of a router's name: `3` or `3.qkv`."""
    layer, _, part = name.partition(".")
    return (int(layer), part) if layer.isdigit() else (10**6, name)


def _columns(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _bits(distribution: Sequence[float]) -> float:
    return -math.fsum(value * math.log2(value) for value in distribution if value > 0)
