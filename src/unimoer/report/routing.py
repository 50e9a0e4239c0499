"""What the routers of an arm learned to tell apart, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimoer.report import wording
from unimoer.report.files import Experiment

SEPARATE = 0.1
"""Bits of mutual information below which a router hardly tells the tasks apart."""
_FIXED = {
    "hard": "fixed by the task",
    "hard_shared": "fixed by the task",
    "similarity": "fixed by the task in training, by the nearest pilot in use",
    "uniform": "fixed, equal weights",
}


def is_learned(router: str | None) -> bool:
    """Whether gradients train a router of this type."""
    return router is not None and router not in _FIXED and router != "random_frozen"


def routing_words(settings: Mapping[str, Any] | None) -> str:
    """Who decides which expert is used."""
    router = (settings or {}).get("router")
    if router in _FIXED:
        return _FIXED[router]
    if router == "random_frozen":
        return "random, never trained"
    return "learned, own expert ahead at the start" if (settings or {}).get("task_prior") else "learned"


def routing_paragraphs(experiment: Experiment) -> list[str]:
    """What the routers learned to tell apart; empty without a routed arm."""
    found = {arm: routing for arm, routing in experiment.routing.items() if routing["mutual_information"] is not None}
    fixed = "; ".join(
        f"{arm} ({_FIXED[str(experiment.router(arm))]})"
        for arm in experiment.extra_arms
        if experiment.router(arm) in _FIXED
    )
    if not found:
        return [f"No router here weighs its experts: {fixed}."] if fixed else []
    paragraphs = [
        "How much routing depends on the task is measured in bits of mutual information between the task and the "
        "expert, from the mean weights of the last quarter of training: 0 where both tasks are routed alike, 1 where "
        "they share no expert."
    ]
    learned = {arm: entry for arm, entry in found.items() if experiment.router(arm) != "random_frozen"}
    if learned:
        paragraphs.append(_learned_bits(learned))
    nulls = [arm for arm in found if arm not in learned]
    if nulls:
        bits = ", ".join(f"{arm} {_bits(found[arm]['mutual_information'])}" for arm in nulls)
        paragraphs.append(
            f"A router that was never trained shows what the texts of the two tasks bring by being different: {bits}."
        )
    swapped = [arm for arm, entry in learned.items() if _roles_differ(entry)]
    if swapped:
        paragraphs.append(
            f"Roles differ between seeds in {wording.listed(swapped)}: what one expert does for one seed, another does "
            "for the next, so that weights averaged over seeds look less decided than they are in each. The bits are "
            "those of each seed, averaged."
        )
    if fixed:
        paragraphs.append(f"Not in the figure, because nothing is learned there: {fixed}.")
    return paragraphs


def _learned_bits(learned: Mapping[str, Mapping[str, Any]]) -> str:
    """Which learned routers part the tasks: more than hardly, more than their own noise, and more than at the start."""
    order = sorted(learned, key=lambda arm: learned[arm]["mutual_information"], reverse=True)
    given = {arm: learned[arm].get("at_start") or 0.0 for arm in order}
    gained = {arm: learned[arm]["mutual_information"] - given[arm] for arm in order}
    clear = [arm for arm in order if gained[arm] >= max(SEPARATE, learned[arm]["within_task"] or 0)]
    bits = {arm: _bits(learned[arm]["mutual_information"]) for arm in order}
    for arm in order:
        noise = learned[arm]["within_task"] or 0.0
        if noise > learned[arm]["mutual_information"] >= SEPARATE:
            bits[arm] += f", of which noise alone would give {_bits(noise)}"
        elif given[arm] >= SEPARATE / 10:
            bits[arm] += f", {_bits(given[arm])} of them given at the start"
    if not clear:
        listed = "; ".join(f"{arm} {bits[arm]}" for arm in order)
        none = (
            "The learned router did not learn" if len(order) == 1 else f"None of {len(order)} learned routers learned"
        )
        return (
            f"{none} to part the two tasks, on average over layers: {listed}. Whatever such an arm scores, it does not "
            "owe it to having learned that."
        )
    best = max(clear, key=lambda arm: gained[arm])
    layers = [(entry["mutual_information"]["mean"], entry["router"]) for entry in learned[best]["routers"]]
    top, where = max((value, name) for value, name in layers if value is not None)
    most = f"in layer {where} with {_bits(top)}"
    text = f"{best} learned to part the tasks most, {most}, on average over layers: {bits[best]}."
    others = "; ".join(f"{arm} {bits[arm]}" for arm in order if arm != best)
    return f"{text} The other learned routers: {others}." if others else text


def _roles_differ(entry: Mapping[str, Any]) -> bool:
    """Whether the mean weights of the seeds hide most of what each seed separates."""
    pairs = [
        (router["mutual_information"]["mean"], router["mutual_information"]["of_mean_weights"])
        for router in entry["routers"]
        if router["experts"]
    ]
    known = [(each, mean) for each, mean in pairs if each is not None and mean is not None]
    each, mean = (sum(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
    return each / max(1, len(known)) >= SEPARATE and mean < each / 2


def _bits(value: float) -> str:
    return f"{value:.2f} bits"
