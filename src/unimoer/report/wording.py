"""Numbers as text, and the verdict as sentences: the same words in the terminal, the page and the Markdown report.

Interference is as likely to be negative as positive: "gains 4%" and "loses 4%" are built alike, from the sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unimoer.report.files import BM25, JOINT, SPECIALIST, UNTRAINED
from unimoer.types import Task

MINUS = "−"
MISSING = "–"
ARM_LABELS = {
    SPECIALIST[Task.EMBEDDING]: "Embedding specialist",
    SPECIALIST[Task.RERANKING]: "Reranking specialist",
    JOINT: "Joint, one adapter",
    UNTRAINED: "Untrained base",
    BM25: "BM25",
}

_METRIC_NAMES = {"ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "recall": "Recall"}


def arm_label(arm: str) -> str:
    return ARM_LABELS.get(arm, arm)


def metric_label(metric: str) -> str:
    """`ndcg@10` as the field writes it, `nDCG@10`."""
    name, at, cut = metric.partition("@")
    return _METRIC_NAMES.get(name, name) + at + cut


def score(value: float | None, signed: bool = False) -> str:
    """A score in [0, 1] or a difference of two, with three decimals."""
    return MISSING if value is None else _decimal(value, 3, signed)


def percent(value: float | None, signed: bool = False, decimals: int = 1) -> str:
    return MISSING if value is None else f"{_decimal(value, decimals, signed)}%"


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def bounds(interval: list[float | None], decimals: int = 3) -> str:
    """`[0.512, 0.734]`."""
    low, high = interval
    if low is None or high is None:
        return MISSING
    return f"[{_decimal(low, decimals)}, {_decimal(high, decimals)}]"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def headline(decision: Mapping[str, Any]) -> str:
    """The verdict as one short claim, no stronger than its intervals and its guard."""
    cells, criterion = decision["tasks"], decision["criterion"]
    weak = [task for task in Task if cells[task]["status"] != "ok"]
    settled = not weak and decision["interval_verdict"]["verdict"] == decision["verdict"]
    claim, reserve = _claim(decision["verdict"], cells, criterion, settled)
    if weak:
        specialists = f"the {weak[0]} specialist" if len(weak) == 1 else "both specialists"
        reserve = f", but {specialists} learned too little to judge by"
    return f"{claim}{reserve}."


def _claim(verdict: str, cells: Mapping[str, Any], criterion: Mapping[str, Any], settled: bool) -> tuple[str, str]:
    """What the point estimates say, and the reserve that the intervals put on it."""
    helped = [task for task in Task if (cells[task]["tir"]["ci95"][1] or 0.0) < 0.0]
    if verdict == "PASS":
        costly = [task for task in Task if (cells[task]["tir"]["mean"] or 0.0) >= criterion["pass"]]
        names = "both tasks" if len(costly) == 2 else str(costly[0])
        if not settled:
            return f"Sharing one adapter seems to cost {names}", "; the intervals leave room for less"
        return f"Sharing one adapter costs {names}" + (f" and helps {helped[0]}" if helped else ""), ""
    if verdict == "MARGINAL":
        return "The cost of sharing one adapter falls between the lines", ""
    if not settled:
        return "No cost of sharing one adapter shows", ", but the intervals allow one"
    if len(helped) == 2:
        return "One shared adapter does better than two specialists", ""
    if all(cells[task]["tir"]["mean"] <= 0.0 for task in Task):
        better = f", and better at {helped[0]}" if helped else ""
        return f"One shared adapter does at least as well as two specialists{better}", ""
    if helped:
        return (
            f"Sharing one adapter helps {helped[0]}, costs {_other(helped[0])} less than {_line(criterion['fail'])}",
            "",
        )
    return f"Sharing one adapter costs neither task {_line(criterion['fail'])} or more", ""


def task_sentence(task: str, cell: Mapping[str, Any], metric: str) -> str:
    """What happened to one task, with its interval, and whether that means anything."""
    doubt = ""
    if cell["status"] != "ok":
        doubt = " That says little: the specialist itself does not clearly beat the untrained base."
    return _change_sentence(task.capitalize(), cell, metric) + doubt


def _change_sentence(name: str, cell: Mapping[str, Any], metric: str) -> str:
    ratio = cell["tir"]["mean"]
    low, high = cell["tir"]["ci95"]
    label = metric_label(metric)
    if ratio is None:
        return f"{name} has no interference ratio, because its specialist scores 0."
    if abs(ratio) < 0.05:
        return f"{name} keeps its specialist's {label} when it shares the adapter ({_interval(low, high)})."
    if ratio > 0:
        loss = f"{name} loses {percent(ratio)} of its specialist's {label}"
        return f"{loss} when it shares the adapter ({_interval(low, high)})."
    # A gain is stated as a positive number, so its interval turns round.
    gain = _interval(None if high is None else -high, None if low is None else -low)
    return f"{name} gains {percent(-ratio)} on its specialist's {label} when it shares the adapter ({gain})."


def region_sentence(region: str, criterion: Mapping[str, Any]) -> str:
    """Where the interval of one task lies relative to the two lines."""
    fail, passes = _line(criterion["fail"]), _line(criterion["pass"])
    return {
        "above_pass": f"The whole interval lies above the {passes} line.",
        "below_fail": f"The whole interval lies below the {fail} line.",
        "between": f"The whole interval lies between the {fail} and {passes} lines.",
        "straddles_pass": f"The interval crosses the {passes} line.",
        "straddles_fail": f"The interval crosses the {fail} line.",
        "straddles_both": f"The interval crosses both the {fail} and the {passes} line.",
        "undefined": "There is no interval, because the specialist scores 0.",
    }[region]


def criterion_sentence(criterion: Mapping[str, Any]) -> str:
    fail, passes = _line(criterion["fail"]), _line(criterion["pass"])
    return (
        f"The rule, fixed before the runs: PASS if the joint model loses {passes} or more of its specialist's "
        f"{metric_label(criterion['metric'])} on either task, FAIL if it loses less than {fail} on both, "
        "MARGINAL otherwise."
    )


def verdict_meaning(verdict: str) -> str:
    """What each verdict says about the question; none of them is good or bad news by itself."""
    return {
        "PASS": "PASS means there is interference here for separate or routed adapters to remove.",
        "FAIL": "FAIL means there is no interference here for separate or routed adapters to remove.",
        "MARGINAL": "MARGINAL means the loss lies between the two lines: more queries or seeds should decide.",
    }[verdict]


def interval_sentence(decision: Mapping[str, Any]) -> str:
    """Whether the intervals support the verdict that the point estimates gave."""
    supported = decision["interval_verdict"]["verdict"]
    if supported == decision["verdict"]:
        return "The 95% intervals support this verdict, not only the point estimates."
    if supported == "INCONCLUSIVE":
        return (
            "The 95% intervals do not settle it: a line of the criterion runs through at least one of them, "
            "so the verdict rests on point estimates."
        )
    return f"Read by whole 95% intervals instead of point estimates, the verdict would be {supported}."


def seed_sentence(seeds: int) -> str:
    if seeds == 1:
        return (
            "One seed: the intervals cover the choice of queries only. Another seed would move every score, "
            "and nothing here says by how much."
        )
    return (
        f"{seeds} seeds: the intervals cover the choice of queries and, as far as {seeds} runs can show it, the seed."
    )


def exposure_sentence(budget: str | None) -> str:
    if budget == "total":
        return (
            "Equal total budget: the joint model trained as long as one specialist and so saw fewer examples of each "
            "task. A loss here mixes interference with having seen less."
        )
    return (
        "Equal exposure: in the joint run each task saw the same examples in the same order as its specialist did. "
        "A loss is therefore not caused by having seen less of the task."
    )


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def resolution(cell: Mapping[str, Any]) -> float | None:
    """Half the width of a ratio's interval, in percent: smaller effects cannot be told from noise here."""
    low, high = cell["tir"]["ci95"]
    return None if low is None or high is None else (high - low) / 2


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"95% interval {percent(low)} to {percent(high)}"


def _decimal(value: float, decimals: int, signed: bool = False) -> str:
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0.0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def _line(value: float) -> str:
    return f"{value:g}%"


def _other(task: str) -> str:
    return next(str(other) for other in Task if other != task)
