"""Which arm won, by how much, and whether the intervals settle it: sentences, no stronger than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimoer.report import wording
from unimoer.report.files import JOINT, Experiment
from unimoer.types import Task

SHARED_LORA = "one shared LoRA"
_READS = {"sequence": "per text", "causal": "per prefix", "token": "per token"}
_GRADIENTS = {"pcgrad": "PCGrad", "cagrad": "CAGrad", "gradnorm": "GradNorm", "famo": "FAMO"}
_ORDER = {"joint_mixed": "both tasks in every step", "joint_staged": "embedding first, then reranking"}


def arm_words(settings: Mapping[str, Any] | None) -> str:
    """What an arm is, from its settings in the plan: `3 experts, sparsegen router per text`."""
    if not settings:
        return wording.MISSING
    router, experts = settings.get("router"), settings.get("experts") or {}
    order = _ORDER.get(str(settings.get("mode")))
    parts = [_adapter_words(router, len(experts), settings.get("granularity"))]
    parts += ["told the task"] if settings.get("task_aware") else []
    parts += ["own expert ahead at the start"] if settings.get("task_prior") else []
    parts += [order] if order else ["tasks in turn"] if router is None else []
    gradients = settings.get("gradients")
    parts += [] if gradients in (None, "sum") else [_GRADIENTS.get(str(gradients), str(gradients))]
    return ", ".join(parts)


def _adapter_words(router: str | None, experts: int, granularity: str | None) -> str:
    if router is None:
        return "one LoRA"
    several = f"{experts} experts"
    special = {
        "hard": f"{several}, switched by the task",
        "hard_shared": f"{several}, the task's and the shared one",
        "similarity": f"{several}, switched by the nearest pilot",
        "uniform": f"{several}, equal weights (null)",
        "random_frozen": f"{several}, random router (null)",
    }
    # One expert and a router: it is the ranks of the one that are routed.
    routed = several if experts > 1 else "ranks of one LoRA"
    return special.get(router) or f"{routed}, {router} router {_READS.get(str(granularity), '')}".strip()


def arm_summary(experiment: Experiment) -> list[str]:
    """Which arm comes first over both tasks and whether that is settled; empty where `joint_single` is the only one."""
    if not experiment.recovery:
        return []
    overall = experiment.recovery["overall"]
    return [_overall_text(experiment, overall), *_learned_text(overall)]


def arm_paragraphs(experiment: Experiment) -> list[str]:
    """The comparison of all joint arms in words: over both tasks, for each, and what to hold against it."""
    recovery = experiment.recovery
    if not recovery:
        return []
    return [
        *arm_summary(experiment),
        *(_task_text(experiment, task, recovery["tasks"][task]) for task in Task),
        _family_text(recovery),
        *_reserves(experiment),
    ]


def _overall_text(experiment: Experiment, overall: Mapping[str, Any]) -> str:
    order, arms = overall["ranking"], overall["arms"]
    best, ratio = order[0], arms[order[0]]["tir"]
    number = len(order)
    if ratio["mean"] is None:
        return "Over both tasks no ratio can be formed, because a specialist scores 0; the arms are not ranked."
    intro = f"Of {number} ways to serve both tasks with one model, {_named(best)} comes out first:"
    text = f"{intro} averaged over the two tasks it {_loss(ratio, experiment.metric)}"
    if best == JOINT:
        lead = overall["lead"]
        text += f". The next, {lead['rival']}, is {_points(lead)} behind ({_range(lead)})."
    else:
        difference, shared = arms[best]["difference"], arms[JOINT]["tir"]
        text += (
            f", where {SHARED_LORA} {_loss(shared, experiment.metric, interval=False)}: a difference of "
            f"{_points(difference)} ({_range(difference)})."
        )
    return f"{text} {_settled_text(best, overall)}"


def _settled_text(best: str, ranking: Mapping[str, Any]) -> str:
    tied, others = ranking["not_told_apart"], len(ranking["ranking"]) - 1
    if not tied:
        return "Even intervals widened for having picked the first of them put every other arm behind it."
    widened = "Intervals widened for having picked the first of them cannot tell it from"
    if len(tied) == others:
        text = f"{widened} any other arm: which is best is open." if others > 1 else f"{widened} the other arm."
    else:
        text = f"{widened} {len(tied)} of the {others} others ({wording.listed(tied)}); the rest lie behind."
    if best == JOINT or JOINT in tied:
        text += f" As {SHARED_LORA} may be the best of them, nothing here shows that experts or routers are needed."
    return text


def _learned_text(overall: Mapping[str, Any]) -> list[str]:
    lead = overall["learned_router"]
    if lead is None or lead["mean"] is None:
        return []
    side = "ahead of" if lead["mean"] >= 0 else "behind"
    text = (
        f"The best learned router, {lead['arm']}, is {_points(lead)} {side} the best arm without one, "
        f"{_named(lead['rival'])} ({_range(lead)})"
    )
    low, high = lead["ci95"]
    if low is None:
        return [f"{text}."]
    if low <= 0 <= high:
        return [f"{text}: the interval does not say whether learning to route helps."]
    return [f"{text}: learning to route {'pays' if low > 0 else 'costs'} here."]


def _task_text(experiment: Experiment, task: Task, found: Mapping[str, Any]) -> str:
    best, metric = found["ranking"][0], wording.metric_label(experiment.metric)
    lost = found["lost"]
    share = (
        f"sharing one LoRA costs {wording.score(lost['mean'])} {metric} {wording.bounds(lost['ci95'])}"
        if lost["mean"] > 0
        else f"sharing one LoRA costs nothing (specialist − shared {wording.score(lost['mean'], signed=True)} "
        f"{wording.bounds(lost['ci95'])})"
    )
    if best == JOINT:
        return f"{task.capitalize()}: {share}, and no other arm scores higher than {SHARED_LORA}."
    cell = found["arms"][best]
    difference, recovery = cell["difference"], cell["recovery"]
    text = (
        f"{task.capitalize()}: {share}. The highest score is that of {best}, {wording.score(cell['mean'])}, "
        f"{wording.score(difference['mean'], signed=True)} {wording.bounds(difference['ci95'])} against {SHARED_LORA} "
        f"(Holm-corrected {_p(cell['p_holm'])})."
    )
    if recovery["mean"] is None:
        return f"{text} Recovery: {recovery['reason']}."
    return f"{text} It wins back {_recovered(recovery)} of the loss."


def _family_text(recovery: Mapping[str, Any]) -> str:
    differing = {
        sign: [
            f"{arm} ({task})"
            for task, found in recovery["tasks"].items()
            for arm, cell in found["arms"].items()
            if cell["p_holm"] < 0.05 and (cell["difference"]["mean"] > 0) == (sign == "better")
        ]
        for sign in ("better", "worse")
    }
    number = recovery["families"]["primary"]
    if not any(differing.values()):
        return f"After Holm's correction none of the {number} comparisons of an arm with {SHARED_LORA} is significant."
    parts = [
        f"{len(arms)} are significantly {sign}: {wording.listed(arms)}" for sign, arms in differing.items() if arms
    ]
    return f"After Holm's correction, of {number} comparisons of an arm with {SHARED_LORA}, {'; '.join(parts)}."


def _reserves(experiment: Experiment) -> list[str]:
    """What a reader has to know before believing any of it."""
    reserves = []
    if len(experiment.seeds) == 1:
        reserves.append("One seed: another could reorder the arms, and no interval here shows by how much.")
    weak = [task for task in Task if experiment.decision["tasks"][task]["status"] != "ok"]
    if weak:
        specialists = f"The {weak[0]} specialist" if len(weak) == 1 else "Neither specialist"
        verb = "did not clearly beat" if len(weak) == 1 else "clearly beat"
        reserves.append(f"{specialists} {verb} the untrained base, so losses and recovery say little there.")
    sizes = {arm: entry["costs"].get("parameters_to_joint") for arm, entry in experiment.arm_details.items()}
    unequal = [f"{arm} {wording.percent(size, signed=True)}" for arm, size in sizes.items() if abs(size or 0.0) > 2.0]
    if unequal:
        reserves.append(f"Not of equal size: against {SHARED_LORA}, trainable parameters are {', '.join(unequal)}.")
    return reserves + _exposure(experiment)


def _exposure(experiment: Experiment) -> list[str]:
    """Arms that have not seen what the shared LoRA has: their difference to it is not of their design alone."""
    reserves = []
    steps = experiment.settings(JOINT).get("steps")
    other = [arm for arm in experiment.extra_arms if experiment.settings(arm).get("steps", steps) != steps]
    if other:
        reserves.append(f"Not trained for as many steps of each task as {SHARED_LORA}: {wording.listed(other)}.")
    pilots = [arm for arm in experiment.extra_arms if experiment.router(arm) == "similarity"]
    if pilots:
        reserves.append(
            "Trained without the examples that its pilots are made of, so not on the same batches as the other arms: "
            f"{wording.listed(pilots)}."
        )
    return reserves


def _named(arm: str) -> str:
    return SHARED_LORA if arm == JOINT else arm


def _loss(ratio: Mapping[str, Any], metric: str, interval: bool = True) -> str:
    """`loses 3.0% of its specialists' nDCG@10 (95% interval 1.0% to 5.0%)`; a gain is a positive number too."""
    mean, (low, high) = ratio["mean"], ratio["ci95"]
    label = wording.metric_label(metric)
    if mean is None:
        return "has no ratio"
    if mean < 0:
        mean, low, high = -mean, None if high is None else -high, None if low is None else -low
        text = f"gains {wording.percent(mean)} on its specialists' {label}"
    else:
        text = f"loses {wording.percent(mean)} of its specialists' {label}"
    return f"{text} ({_interval(low, high, '%')})" if interval else text


def _points(cell: Mapping[str, Any]) -> str:
    return f"{abs(cell['mean']):.1f} points"


def _range(cell: Mapping[str, Any]) -> str:
    """The interval of a difference that is told without its sign."""
    low, high = cell["ci95"]
    if cell["mean"] < 0 and low is not None and high is not None:
        low, high = -high, -low
    return _interval(low, high)


def _interval(low: float | None, high: float | None, unit: str = "") -> str:
    if low is None or high is None:
        return "no interval"
    ends = [wording.percent(end).rstrip("%") + unit for end in (low, high)]
    return f"95% interval {ends[0]} to {ends[1]}"


def _recovered(recovery: Mapping[str, Any]) -> str:
    low, high = recovery["ci95"]
    share = wording.percent(recovery["mean"], decimals=0)
    return f"{share} [{wording.percent(low, decimals=0)}, {wording.percent(high, decimals=0)}]"


def _p(value: float) -> str:
    text = wording.p_value(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"
