"""From answers, question by question, to means with intervals, paired differences, latencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from unimoer.config import RagConfig
from unimoer.evaluation.statistics import Sample
from unimoer.rag.asked import ASKED, read_asked
from unimoer.rag.worker import COSTS, answered, system_folder
from unimoer.schema import Cell, RagAnswer, RagCosts, RagPlan, RagResults, read_record
from unimoer.schema.rag import RagDifference, RagLatency, RagScores, RagSystem

MEASURES = ("exact_match", "f1", "contains", "answer_recall", "passage_recall")
RETRIEVE = ("embed", "dense", "bm25")

Answers = Mapping[str, Sequence[RagAnswer]]
"""Set -> answers in the order of its questions, the same for every system."""


def summarise(config: RagConfig, plan: RagPlan, folder: Path, command: str) -> RagResults:
    """Of a folder in which every question has its answer, and every system its costs."""
    order = {name: [one.id for one in read_asked(folder / ASKED, name)[0]] for name in plan.asked}
    answers: dict[str, Answers] = {}
    costs: dict[str, RagCosts] = {}
    for system in config.systems:
        found = {name: answered(folder, system, name) for name in order}
        answers[system] = {name: [found[name][key] for key in ids] for name, ids in order.items()}
        costs[system] = read_record(RagCosts, system_folder(folder, system) / COSTS)
    return RagResults(
        name=config.name,
        command=command,
        plan=plan,
        systems={system: _system(own, costs[system]) for system, own in answers.items()},
        differences=[_difference(answers, one, two) for one, two in combinations(answers, 2)],
    )


def samples(answers: Answers, measure: str) -> dict[str, Sample]:
    """Set -> its scores, of the questions that have one; sets of which none has are left out."""
    found = {}
    for name, own in answers.items():
        scores = [value for one in own if (value := getattr(one, measure)) is not None]
        if scores:
            found[name] = Sample.of({name: np.array([scores])})
    return found


def _system(answers: Answers, costs: RagCosts) -> RagSystem:
    by_measure = {measure: samples(answers, measure) for measure in MEASURES}
    return RagSystem(
        macro=RagScores(
            questions=sum(map(len, answers.values())),
            measures={measure: _macro(own) for measure, own in by_measure.items() if len(own) == len(answers)},
        ),
        sets={
            name: RagScores(
                questions=len(own),
                measures={measure: _cell(found[name]) for measure, found in by_measure.items() if name in found},
            )
            for name, own in answers.items()
        },
        milliseconds={name: _latencies(own) for name, own in answers.items()},
        costs=costs,
    )


def _difference(answers: Mapping[str, Answers], first: str, second: str) -> RagDifference:
    macro: dict[str, Cell] = {}
    sets: dict[str, dict[str, Cell]] = {name: {} for name in answers[first]}
    for measure in MEASURES:
        one, two = samples(answers[first], measure), samples(answers[second], measure)
        if one.keys() != two.keys():
            # A closed book finds nothing that could be compared.
            continue
        differences = {name: one[name] - two[name] for name in one}
        for name, sample in differences.items():
            sets[name][measure] = _cell(sample)
        if len(differences) == len(sets):
            macro[measure] = _macro(differences)
    return RagDifference(first=first, second=second, macro=macro, sets=sets)


def _macro(by_set: Mapping[str, Sample]) -> Cell:
    """Average over sets, each with the same weight."""
    return _cell(Sample.of({name: sample.terms[name] for name, sample in by_set.items()}))


def _cell(sample: Sample) -> Cell:
    """Without an interval where scores do not differ: they say nothing about their spread."""
    interval = sample.interval()
    ends = [end if math.isfinite(end) else None for end in (interval.low, interval.high)]
    known = interval.low < interval.high
    return Cell(mean=interval.estimate, ci95=(ends[0], ends[1]) if known else (None, None))


def _latencies(answers: Sequence[RagAnswer]) -> dict[str, RagLatency]:
    stages: dict[str, list[float]] = {}
    for one in answers:
        took = dict(one.milliseconds)
        found = [took[stage] for stage in RETRIEVE if stage in took]
        whole = {**took, **({"retrieve": sum(found)} if found else {}), "total": sum(took.values())}
        for stage, value in whole.items():
            stages.setdefault(stage, []).append(value)
    return {
        stage: RagLatency(median=float(np.median(values)), p95=float(np.percentile(values, 95)))
        for stage, values in stages.items()
    }
