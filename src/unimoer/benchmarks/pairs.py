"""Alternating pairs: the only honest way to compare two programs on a shared machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Ratio:
    """Speed of ours over the peer's, one value a pair; above 1 means that ours is faster."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        return {
            "ratio": round(self.median, 3),
            "low": round(min(self.values), 3),
            "high": round(max(self.values), 3),
            "pairs": len(self.values),
        }


def clock(device: torch.device) -> float:
    """Seconds, read once the device has done all that it was asked for: launching is not running."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def alternate(
    contenders: Mapping[str, Callable[[], None]], *, device: torch.device, pairs: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, one after the other within a round."""
    for _ in range(warmup):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(pairs):
        # The order turns round from pair to pair: whoever goes second may find the caches warm or the core hot.
        names = list(contenders)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            started = clock(device)
            contenders[name]()
            seconds[name].append(clock(device) - started)
    return seconds


def report(
    console: Console,
    title: str,
    unit: str,
    amount: float,
    seconds: Mapping[str, list[float]],
    *,
    ours: str,
    peer: str,
    extra: Mapping[str, Any] | None = None,
) -> Ratio:
    """Print the table and, as the last line, one JSON object with the ratio of `ours` to `peer` and its spread."""
    ratios = {
        name: Ratio(tuple(theirs / own for own, theirs in zip(seconds[ours], times, strict=True)))
        for name, times in seconds.items()
        if name != ours
    }
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    table.add_column(f"{unit}/s (median)", justify="right")
    table.add_column("ours is faster by (median, low - high)", justify="right")
    for name, times in seconds.items():
        rate = f"{amount / statistics.median(times):,.0f}"
        if name == ours:
            table.add_row(name, rate, "")
        else:
            found = ratios[name].to_json()
            table.add_row(name, rate, f"{found['ratio']:.2f}x  ({found['low']:.2f} - {found['high']:.2f})")
    console.print(table)
    others = {name: found.to_json() for name, found in ratios.items() if name != peer}
    line = {**ratios[peer].to_json(), "ours": ours, "peer": peer, "others": others, **(extra or {})}
    # Not through the console, which would wrap and colour it: scripts read this line.
    print(json.dumps(line))  # noqa: T201
    return ratios[peer]
