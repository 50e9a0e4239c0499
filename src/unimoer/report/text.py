"""Numbers and names as text: the same in tables, figures, sentences and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from unimoer import units
from unimoer.schema import Cell, Interval

MINUS = "−"
MISSING = "–"
_METRICS = {"ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "recall": "Recall"}


def metric_label(metric: str) -> str:
    """`ndcg@10` as the field writes it, `nDCG@10`."""
    name, at, cutoff = metric.partition("@")
    return _METRICS.get(name, name) + at + cutoff


def decimal(value: float | None, decimals: int, signed: bool = False) -> str:
    if value is None:
        return MISSING
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0.0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def score(value: float | None, signed: bool = False) -> str:
    """A score in [0, 1], or a difference of two."""
    return decimal(value, 3, signed)


def percent(value: float | None, signed: bool = False, decimals: int = 1) -> str:
    """`value` is in percent already."""
    return MISSING if value is None else f"{decimal(value, decimals, signed)}%"


def interval(bounds: Interval, decimals: int = 3) -> str:
    """`[0.512, 0.734]`; empty where it is undefined."""
    low, high = bounds
    return "" if low is None or high is None else f"[{decimal(low, decimals)}, {decimal(high, decimals)}]"


def ratio(cell: Cell) -> str:
    """`+1.8%, 95% interval [−0.4, 4.1]`."""
    bounds = interval(cell.ci95, 1)
    return f"{percent(cell.mean, signed=True)}, " + (f"95% interval {bounds}" if bounds else "no interval")


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    return MISSING if seconds is None else units.duration(seconds)


def count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def compact(value: float) -> str:
    """`1.13M`, `8.2k`, `30`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def gibibytes(megabytes: float | None) -> str:
    return MISSING if megabytes is None else f"{megabytes / 1024:.2f} GiB"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
