"""What the routers of an arm had settled on at the end of training: mean weights by layer and task, and how much the
choice of an expert depends on the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unimoer.experiments.results import RunFolder, read_log
from unimoer.types import Task

LATE = 0.25
"""Share of a task's logged steps that is summarised, from the end."""
_KEYS = ("entropy", "active_experts", "one_expert_share")

Line = Mapping[str, Any]


def summarise_routing(runs: Sequence[RunFolder]) -> dict[str, Any] | None:
    """Routing of one arm over its runs, one a seed; None where no run has logged any, as when the task decides.

    Weights, entropy (over log E), active experts and one-expert share are means over the last quarter of the logged
    steps, then over seeds. Experts have no fixed roles: two seeds may give the same one to different tasks, and the
    mean of their weights would look undecided. So the mutual information is that of each seed, averaged; where
    `of_mean_weights` is far below it, the seeds disagree about the roles. `within_task` is what two halves of the same
    task's lines give: the noise of batches, and more of it than is in the whole. `at_start` is the mutual information
    of the first logged batch of each task, before a router can have learned much: what it was given, as by a prior.
    """
    by_seed = {run.seed: found for run in runs if (found := _summarise_run(run))}
    if not by_seed:
        return None
    names = sorted({name for found in by_seed.values() for name in found}, key=_place)
    routers = [
        _average(name, {seed: found[name] for seed, found in by_seed.items() if name in found}) for name in names
    ]
    informed = [entry["mutual_information"]["mean"] for entry in routers]
    return {
        "seeds": sorted(by_seed),
        "experts": list(dict.fromkeys(expert for entry in routers for expert in entry["experts"])),
        "units": max(entry["units"] for entry in routers),
        "mutual_information": _mean([value for value in informed if value is not None]),
        "within_task": _mean([entry["within_task"] for entry in routers if entry["within_task"] is not None]),
        "at_start": _mean([entry["at_start"] for entry in routers if entry["at_start"] is not None]),
        "routers": routers,
    }


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


def _summarise_run(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Router -> the mean of its late lines by task."""
    groups: dict[str, dict[str, list[Line]]] = {}
    for line in read_log(run.folder / "routing.jsonl", ("step", "task", "router")):
        if line["task"] in set(Task) and line.get("weights"):
            groups.setdefault(str(line["router"]), {}).setdefault(line["task"], []).append(line)
    return {name: {task: _late(lines) for task, lines in sorted(by_task.items())} for name, by_task in groups.items()}


def _late(lines: Sequence[Line]) -> dict[str, Any]:
    ordered = sorted(lines, key=lambda line: int(line["step"]))
    chosen = ordered[-max(1, math.ceil(LATE * len(ordered))) :]
    halves = [_columns([line["weights"] for line in chosen[start::2]]) for start in (0, 1) if len(chosen) > 1]
    return {
        "within": mutual_information(*halves) if halves else None,
        "experts": list(chosen[-1].get("experts") or []),
        "weights": _columns([line["weights"] for line in chosen]),
        "at_start": ordered[0]["weights"],
        **{key: _mean([float(line[key]) for line in chosen if line.get(key) is not None]) for key in _KEYS},
        "first_step": int(chosen[0]["step"]),
        "last_step": int(chosen[-1]["step"]),
    }


def _average(name: str, by_seed: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One router, over seeds."""
    tasks: dict[str, dict[str, Any]] = {}
    for task in Task:
        found = [by_task[task] for by_task in by_seed.values() if task in by_task]
        if found:
            tasks[task] = {
                "weights": _columns([one["weights"] for one in found]),
                **{key: _mean([one[key] for one in found if one[key] is not None]) for key in _KEYS},
                "steps": [min(one["first_step"] for one in found), max(one["last_step"] for one in found)],
            }
    some = next(iter(next(iter(by_seed.values())).values()))
    starts = [_between_tasks(by_task, "at_start") for by_task in by_seed.values()]
    informed = {str(seed): _between_tasks(by_task) for seed, by_task in sorted(by_seed.items())}
    known = [value for value in informed.values() if value is not None]
    within = [one["within"] for by_task in by_seed.values() for one in by_task.values() if one["within"] is not None]
    units = len(some["weights"])
    return {
        "router": name,
        "layer": _place(name)[0],
        # The units of a rank-wise router have no names.
        "experts": some["experts"] if len(some["experts"]) == units else [],
        "units": units,
        "mutual_information": {
            "mean": _mean(known),
            "per_seed": informed,
            "of_mean_weights": _between_tasks(tasks),
        },
        "within_task": _mean(within),
        "at_start": _mean([value for value in starts if value is not None]),
        "tasks": tasks,
    }


def _between_tasks(by_task: Mapping[str, Mapping[str, Any]], weights: str = "weights") -> float | None:
    """Mutual information, where both tasks were logged."""
    return mutual_information(*(by_task[task][weights] for task in Task)) if set(by_task) == set(Task) else None


def _place(name: str) -> tuple[int, str]:
    """Layer and projections of a router's name: `3` or `3.qkv`."""
    layer, _, part = name.partition(".")
    return (int(layer), part) if layer.isdigit() else (10**6, name)


def _columns(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _bits(distribution: Sequence[float]) -> float:
    return -math.fsum(value * math.log2(value) for value in distribution if value > 0)
