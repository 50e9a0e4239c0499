"""From a configuration to the runs of a study, and the plan that is frozen before the first of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from unimoer.config import (
    BM25,
    RANDOM,
    UNTRAINED,
    RunSpec,
    StudyConfig,
    SuiteConfig,
    SuiteSpec,
    TrainSpec,
    parse_config,
)
from unimoer.config.study import override
from unimoer.evaluation.first_stage import candidates_fingerprint
from unimoer.evaluation.suites import Collection
from unimoer.model.identity import base_identity
from unimoer.runs.data import suite_data, training_data
from unimoer.runs.identity import model_identity, precision, suite_spec
from unimoer.schema.plan import (
    CollectionPlan,
    Criterion,
    Declaration,
    DomainPlan,
    SuitePlan,
)
from unimoer.studies.arms import arm_settings, plan_arm
from unimoer.types import Task

ONLY = ""
"""The variant of a study that has one."""


@dataclass(frozen=True)
class Planned:
    """All runs of a study, and what it declares of them."""

    runs: tuple[RunSpec, ...]
    declared: Declaration


def variants(config: StudyConfig) -> dict[str, StudyConfig]:
    """The configuration at every point of the study.

    Raises:
        UserError: a point sets something that does not exist, named by the point.
    """
    if not config.variants:
        return {ONLY: config}
    content = config.model_dump(mode="json") | {"variants": {}}
    return {
        name: parse_config(override(content, changes), f"variant '{name}'") for name, changes in config.variants.items()
    }


def plan_study(config: StudyConfig, study: str, families: Mapping[str, list[str]], device: torch.device) -> Planned:
    """Every run of a study, references first: they cost minutes and show that the whole path works.

    Seed by seed, specialists before joint arms. An untrained adapter changes nothing, so the untrained embedding is the
    same for every seed and runs once; a learned score head starts at random, so the untrained reranker runs once a
    seed. Runs that two variants share are run once.

    Raises:
        UserError: an arm is impossible, or data or suites are wrong.
    """
    points = variants(config)
    # Before anything that takes time: an arm may be impossible.
    arms = {name: {arm: plan_arm(point, arm) for arm in point.arms} for name, point in points.items()}
    runs: dict[tuple[str, str], RunSpec] = {}
    for name, point in points.items():
        for spec in _variant_runs(point, name, device):
            runs.setdefault((spec.variant if spec.train or spec.model else ONLY, spec.folder), spec)
    order = sorted(runs.values(), key=lambda spec: spec.train is not None)
    declared = Declaration(
        study=study,
        criterion=Criterion(**config.criterion.model_dump()),
        budget=config.budget,
        seeds=list(config.seeds),
        arms=arms,
        families={name: sorted(members) for name, members in families.items()},
        training={f"{spec.variant}:{spec.arm}": _settings(spec) for spec in order if spec.train is not None},
        domains=_domains(points),
        suite=config.suite,
        suites={name: _suite(suite, points) for name, suite in config.evaluation.suites.items()},
        checkpoints=sorted(config.evaluation.checkpoints),
    )
    return Planned(tuple(order), declared)


def _variant_runs(config: StudyConfig, variant: str, device: torch.device) -> list[RunSpec]:
    common: dict[str, Any] = {
        "variant": variant,
        "device": str(device),
        "batch_tokens": config.evaluation.batch_tokens,
        "latency_requests": config.evaluation.latency_requests,
        "trackers": config.trackers,
        "resources": config.resources,
    }
    both = _suites(config, tuple(Task))
    found = [RunSpec(arm=arm, seed=0, suites=both, **common | {"variant": ONLY}) for arm in (BM25, RANDOM)]
    vectors = _suites(config, (Task.EMBEDDING,))
    found += [
        RunSpec(arm=name, seed=0, suites=vectors, **common | {"variant": ONLY}) for name in config.evaluation.encoders
    ]
    identity = model_identity(base_identity(config.model), config.model, device)
    for number, seed in enumerate(config.seeds):
        if number == 0 or config.model.reranking.starts_at_random:
            tasks = tuple(Task) if number == 0 else (Task.RERANKING,)
            suites = _suites(config, tasks)
            found.append(
                RunSpec(arm=UNTRAINED, seed=seed, model=config.model, identity=identity, suites=suites, **common)
            )
    for seed in config.seeds:
        for arm in config.arms:
            spec = train_spec(config, arm, seed, device)
            suites = _suites(config, spec.tasks)
            found.append(
                RunSpec(
                    arm=arm, seed=seed, train=spec, suites=suites, checkpoints=config.evaluation.checkpoints, **common
                )
            )
    return found


def train_spec(config: StudyConfig, arm: str, seed: int, device: torch.device) -> TrainSpec:
    """What the run of one arm and seed trains, with nothing left to look up."""
    training, model = arm_settings(config, arm)
    settings = config.arm(arm)
    dtype = precision(model, device)
    return TrainSpec(
        arm=arm,
        seed=seed,
        tasks=settings.tasks,
        schedule=settings.schedule,
        steps={task: config.steps(settings, task) for task in settings.tasks},
        model=model,
        base=base_identity(model),
        data=config.data,
        fingerprints={name: domain.fingerprint for name, domain in training_data(config.data).items()},
        training=training,
        dtype=dtype,
        device=cast("Literal['cpu', 'cuda', 'mps']", device.type),
    )


def single_run(config: StudyConfig, device: torch.device) -> RunSpec:
    """The run of a configuration with one arm and one seed, for `unimoer train`."""
    arm, seed = config.arms[0], config.seeds[0]
    runs = _variant_runs(config, ONLY, device)
    return next(spec for spec in runs if spec.train is not None and (spec.arm, spec.seed) == (arm, seed))


def _suites(config: StudyConfig, tasks: tuple[Task, ...]) -> tuple[SuiteSpec, ...]:
    return tuple(suite_spec(name, suite, tasks) for name, suite in config.evaluation.suites.items())


def _settings(spec: RunSpec) -> str:
    """Of a run without its seed: what a changed learning rate changes."""
    assert spec.train is not None
    return spec.train.model_copy(update={"seed": 0}).key


def _domains(points: Mapping[str, StudyConfig]) -> dict[str, DomainPlan]:
    """By name; a point that trains on another set of the same name has it beside the others, under both names."""
    found: dict[str, DomainPlan] = {}
    for variant, point in points.items():
        for name, domain in training_data(point.data).items():
            plan = DomainPlan(
                source=domain.config.source,
                documents=len(domain.dataset.corpus),
                queries=len(domain.examples),
                fingerprint=domain.fingerprint,
                held_out=domain.held_out,
                notes=domain.dataset.notes,
            )
            if found.setdefault(name, plan) != plan:
                found[f"{variant}:{name}"] = plan
    return found


def _suite(suite: SuiteConfig, points: Mapping[str, StudyConfig]) -> SuitePlan:
    """A suite, and how much of it training shows at any point of the study."""
    # By content: one data set has several names, and its documents may stand in another one too.
    shown = {
        domain.dataset.corpus[key].content
        for point in points.values()
        for domain in training_data(point.data).values()
        for example in domain.examples
        for key in example.positive_ids
    }
    return SuitePlan(
        collections={key: _collection(collection, shown) for key, collection in suite_data(suite).items()},
        first_stage=suite.first_stage,
        candidates=candidates_fingerprint(suite.first_stage, suite_data(suite)),
        depth=suite.rerank_depth,
        first_stage_weight=suite.first_stage_weight,
    )


def _collection(collection: Collection, shown: set[str]) -> CollectionPlan:
    """What is evaluated on, and how much of it training has shown as positives: counted rather than declared."""
    corpus = collection.dataset.corpus
    relevant = {key for grades in collection.qrels.values() for key, grade in grades.items() if grade > 0}
    positives = {key for key, document in corpus.items() if document.content in shown}
    return CollectionPlan(
        source=collection.config.source,
        split=collection.split,
        documents=len(corpus),
        queries=len(collection.qrels),
        fingerprint=collection.dataset.fingerprint,
        seen=len(relevant & positives),
        relevant=len(relevant),
        distractors=len(corpus.keys() - relevant - positives),
        split_identifiers=collection.config.split_identifiers,
        instruction=collection.config.instruction,
        ignore_identical_ids=collection.config.ignore_identical_ids,
        notes=collection.dataset.notes,
    )


def declaration_hash(declared: Declaration) -> str:
    """SHA-256 of everything that was declared."""
    return hash_of(declared.model_dump(mode="json"))


def hash_of(declared: Mapping[str, Any]) -> str:
    """As `declaration_hash`, of a declaration as it stands in a file."""
    return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()
