"""What the numbers of an experiment mean and do not mean: short paragraphs made from its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unimoer.report import wording
from unimoer.report.files import Experiment
from unimoer.types import Task


@dataclass(frozen=True)
class Note:
    title: str
    text: str
    warning: bool = False


def reading_notes(experiment: Experiment) -> list[Note]:
    """How to read the verdict, in the order in which a careful reader would ask."""
    decision, results = experiment.decision, experiment.results
    criterion = decision["criterion"]
    notes = [
        Note("The ratio", _ratio_text(decision)),
        Note(
            "The criterion", f"{wording.criterion_sentence(criterion)} {wording.verdict_meaning(decision['verdict'])}"
        ),
        Note("The interval", _interval_text(decision)),
        _guard_note(decision),
        Note("Exposure", wording.exposure_sentence(decision.get("budget")), warning=decision.get("budget") == "total"),
        Note("Seeds", wording.seed_sentence(len(experiment.seeds)), warning=len(experiment.seeds) == 1),
    ]
    notes += [note for note in (_ceiling_note(experiment), _overlap_note(results)) if note is not None]
    notes.append(Note("The p-values", _test_text(decision)))
    return notes


def conflict_paragraphs(decision: Mapping[str, Any]) -> list[str]:
    """Gradient conflict in words, always beside its noise ceiling; empty without a probe."""
    found = decision["gradient_conflicts"]
    if not found:
        return []
    negative = wording.percent(100 * found["negative_share"], decimals=0)
    paragraphs = [
        "During joint training the gradients of the two tasks had a mean cosine of "
        f"{wording.score(found['mean_cosine'], signed=True)} over {found['measurements']:,} measurements; {negative} "
        "of them were negative, that is, an update for one task would have undone some of the other. The gradients "
        "are those with respect to the frozen weights, so the numbers do not depend on how LoRA factorises its update."
    ]
    if found["noise_ceiling"] is not None:
        paragraphs.append(
            "A batch is a noisy sample, and noise pulls every cosine towards 0. Judged by the halves of its own "
            f"batches, a task's gradient agrees with itself only to {wording.score(found['reliability_embedding'])} "
            f"for embedding and {wording.score(found['reliability_reranking'])} for reranking; two tasks that wanted "
            f"exactly the same would show about {wording.score(found['noise_ceiling'])}. {_against_ceiling(found)}"
        )
    layers = found["by_layer"]
    if len(layers) > 1:
        low, high = (choose(layers, key=lambda entry: entry["mean_cosine"]) for choose in (min, max))
        paragraphs.append(
            f"By layer the mean runs from {wording.score(low['mean_cosine'], signed=True)} (layer {low['layer']}) to "
            f"{wording.score(high['mean_cosine'], signed=True)} (layer {high['layer']}). Opposed gradients need not "
            "cost anything in the end, and aligned ones may: the scores above decide, this shows where to look."
        )
    return paragraphs


def resolution_sentence(decision: Mapping[str, Any]) -> str:
    """The smallest effect that this experiment could have told from nothing."""
    widths = [(task, wording.resolution(decision["tasks"][task])) for task in Task]
    known = [f"±{width:.1f} points for {task}" for task, width in widths if width is not None]
    if not known:
        return ""
    return f"At this size the ratio is known to within about {' and '.join(known)}; smaller effects drown in noise."


def _ratio_text(decision: Mapping[str, Any]) -> str:
    metric = wording.metric_label(decision["criterion"]["metric"])
    cell = decision["tasks"][Task.EMBEDDING]
    points = cell["specialist"]["mean"] * decision["criterion"]["pass"] / 100
    return (
        f"TIR, the task interference ratio, is (specialist − joint) / specialist on {metric}, averaged over data sets, "
        "in percent. Positive: sharing one adapter costs the task something. Negative: it helps. For embedding here, "
        f"{decision['criterion']['pass']:g}% is {points:.3f} {metric}."
    )


def _interval_text(decision: Mapping[str, Any]) -> str:
    method = decision["method"]
    return (
        f"Intervals ({method['interval']}) are over {method['resampled']}. The data sets "
        f"themselves are kept fixed, so nothing is claimed about others. {resolution_sentence(decision)}"
    ).strip()


def _guard_note(decision: Mapping[str, Any]) -> Note:
    cells = decision["tasks"]
    gains = "; ".join(
        f"{task} {wording.score(cells[task]['gain']['mean'], signed=True)} "
        f"{wording.bounds(cells[task]['gain']['ci95'])}, {cells[task]['status']}"
        for task in Task
    )
    text = (
        "A specialist that learned nothing has nothing to lose, and its ratio would be noise. So each must beat the "
        f"untrained base on its own task with an interval above 0; otherwise its task counts as underpowered. "
        f"Gains: {gains}."
    )
    return Note("The guard", text, warning=any(cell["status"] != "ok" for cell in cells.values()))


def _ceiling_note(experiment: Experiment) -> Note | None:
    ceiling = experiment.results["ceilings"]["macro"]
    if not ceiling:
        return None
    metric = wording.metric_label(experiment.metric)
    recall = wording.percent(100 * ceiling["recall"], decimals=0)
    depth = experiment.results.get("rerank_depth")
    return Note(
        "The reranking ceiling",
        f"Every arm reranks the same {depth} BM25 candidates of a query, which hold {recall} of the relevant "
        f"documents. A perfect order of them would score {wording.score(ceiling.get(experiment.metric))} {metric}: "
        "reranking scores are to be read against that, not against 1, and not against embedding scores over the "
        "whole corpus.",
    )


def _overlap_note(results: Mapping[str, Any]) -> Note | None:
    groups: dict[str, list[str]] = {}
    for name, found in sorted(results["datasets"].items()):
        if found.get("overlap"):
            groups.setdefault(str(found["overlap"]), []).append(name)
    if not groups:
        return None
    listed = " ".join(f"{', '.join(names)}: {overlap}." for overlap, names in groups.items())
    return Note(
        "Seen and unseen documents",
        f"Test queries are always new; whether their documents are depends on the data set. {listed} High scores on "
        "seen documents say little about new collections; the comparison of arms is fair on both, because all arms "
        "saw the same.",
    )


def _test_text(decision: Mapping[str, Any]) -> str:
    method = decision["method"]
    families = method["families"]
    return (
        f"Specialist and joint are compared query by query; the test is {method['test']}. Holm's correction runs over "
        f"two families: the {families['primary']} averages, on which the verdict rests, and the "
        f"{families['exploratory']} pairs of task and data set, which are exploratory. A sign-flip test speaks of "
        "these trained models; it cannot see how another seed would have come out."
    )


def _against_ceiling(found: Mapping[str, Any]) -> str:
    ceiling, cosine = found["noise_ceiling"], found["mean_cosine"]
    if ceiling < 0.05:
        return "That is so close to 0 that the cosine between the tasks can hardly be read at all."
    corrected = found["mean_cosine_corrected"]
    share = f"{abs(cosine) / ceiling:.0%} of that"
    text = f"The observed mean is {share}." if cosine >= 0 else f"The observed mean points the other way, at {share}."
    if corrected is not None:
        text += f" Corrected measurement by measurement, the mean is {wording.score(corrected, signed=True)}."
    return text
