"""From a configuration to a folder with results: plan, freeze, run, estimate."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from rich.console import Console

from unimoer.config import RunSpec, StudyConfig
from unimoer.errors import UserError
from unimoer.evaluation.suites import list_collections
from unimoer.executors import Executor
from unimoer.executors.local import LocalExecutor
from unimoer.executors.progress import Progress
from unimoer.files import write_text
from unimoer.runs import is_done
from unimoer.runs.data import forget, lacking, suite_data, training_data
from unimoer.runs.evaluate import kind_of
from unimoer.runs.folder import check_same, expected, locked, write_spec
from unimoer.runs.identity import precision
from unimoer.schema import Plan, Results, write_record
from unimoer.studies import find_study, summary
from unimoer.studies.costs import describe_arms
from unimoer.studies.evidence import read_evidence
from unimoer.studies.freeze import decision_file, freeze
from unimoer.studies.planning import plan_study, variants
from unimoer.studies.published import earlier_decision, earlier_results
from unimoer.studies.study import Study
from unimoer.studies.table import arms_table
from unimoer.training.probe import estimate_probe_bytes


def run_study(
    study: Study,
    config: StudyConfig,
    folder: Path,
    *,
    device: torch.device,
    command: str,
    console: Console,
    amend: bool = False,
    executor: Executor | None = None,
) -> Plan:
    """Run or continue a study and write `plan.json`, `results.json` and, where it decides, `decision.json`.

    `config.yaml` beside them holds every setting, and can be run again.

    Raises:
        UserError: the folder is in use, its plan is another one, the data or the model is wrong, or training diverged.
    """
    forget()
    config = study.prepare(config)
    # Before anything that takes time, and before there is a folder: a point of the study may be impossible.
    variants(config)
    collections = list(list_collections(config.evaluation.suites[config.suite]))
    families = study.families(config, collections)
    if (folder / "env.json").exists() and not (folder / "plan.json").exists():
        raise UserError(f"{folder}: holds a single run, whose files a study would replace; choose another --output")
    existed = folder.exists()
    with locked(folder):
        try:
            with Progress(console, {}) as progress:
                progress.update("preparing data", ", ".join(config.data.trained))
                planned = plan_study(config, study.name, families, device)
                # Run files too are read before anything is frozen.
                notes = [*_left_out(config), *_probe(config, device)]
                content = config.model_dump(mode="json")
                plan = freeze(folder, config.name, planned, command, amend=amend, settings=content)
        except BaseException:
            # A study that cannot begin leaves nothing behind.
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for table in arms_table(planned.declared.arms):
            console.print(table)
        for note in notes:
            console.print(note, highlight=False)
        write_record(folder / "plan.json", plan)
        write_text(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        jobs: dict[Path, RunSpec] = {}
        for spec in planned.runs:
            # Variants may share runs.
            jobs.setdefault(folder / "runs" / spec.folder, spec)
        for place, spec in jobs.items():
            if place.is_dir():
                check_same(spec, place)
                # Scores are read where this says: an amended plan may ask for less, or for what was done before.
                write_spec(place, spec)
        todo = [(spec, place) for place, spec in jobs.items() if not is_done(place, spec)]
        if len(todo) < len(jobs):
            console.print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are already done in {folder}", highlight=False)
        runner = executor or LocalExecutor()
        with Progress(console, workload([spec for spec, _ in todo]), min(runner.workers, len(todo)) or 1) as progress:
            runner.run(todo, progress.take)
            progress.update("statistics", "intervals and tests")
            write_results(folder)
    return plan


def write_results(folder: Path) -> tuple[Results, Path | None]:
    """Read a study's files and write `results.json`, `scores.json.gz` and the decision, each atomically.

    All are functions of the files read: a study that was killed and resumed ends in the same numbers as one that was
    not. A decision under an amended plan has a file of its own. Where the runs are not there, what only they can say
    is kept: ceilings, costs, routing, provenance, conflicts of gradients.
    """
    evidence = read_evidence(folder)
    study = find_study(evidence.plan.declared.study)
    found = study.estimate(evidence)
    others = [name for name in evidence.plan.declared.suites if name != evidence.suite]
    results = Results(
        study=study.name,
        name=evidence.plan.name,
        sections=list(study.sections),
        plan=evidence.plan,
        suite=evidence.suite,
        criterion=evidence.plan.declared.criterion,
        scores={variant: summary.score_tables(evidence, evidence.table(variant)) for variant in evidence.variants},
        other_suites={name: summary.score_tables(evidence, evidence.table(suite=name)) for name in others},
        ceilings=summary.ceilings(evidence),
        arms=describe_arms(evidence),
        runs=summary.run_results(evidence),
        recovery=found.recovery,
        routing=found.routing,
        points=found.points,
        provenance=summary.provenance(evidence),
    )
    decision, target = found.decision, folder / decision_file(evidence.plan)
    if evidence.runs:
        evidence.scores.write(folder, evidence.metric)
    else:
        results = earlier_results(results, folder / "results.json")
        decision = earlier_decision(decision, target)
    write_record(folder / "results.json", results)
    if decision is None:
        return results, None
    write_record(target, decision)
    return results, target


def workload(specs: Sequence[RunSpec]) -> dict[str, int]:
    """Units of each kind of work, for the estimate of the time left."""
    work: Counter[str] = Counter()
    for spec in specs:
        if spec.train is not None:
            work.update({f"train {task}": count for task, count in spec.train.steps.items()})
        work.update(kind_of(spec, wanted) for wanted in expected(Path(), spec))
    return dict(work)


def _left_out(config: StudyConfig) -> list[str]:
    """What reading the data left out, one line each."""
    lines: list[str] = []
    for name, domain in training_data(config.data).items():
        lines += [f"{name}: {warning}" for warning in domain.dataset.warnings]
        if domain.without_positive:
            lines.append(
                f"{name}: queries of split '{domain.config.split}' without a relevant document, left out: "
                f"{domain.without_positive:,}"
            )
    for suite in config.evaluation.suites.values():
        lines += lacking(suite)
        for name, collection in suite_data(suite).items():
            lines += [f"{name}: {warning}" for warning in collection.dataset.warnings]
            if collection.without_positive:
                lines.append(
                    f"{name}: queries of split '{collection.split}' without a relevant document, left out: "
                    f"{collection.without_positive:,}"
                )
    # Once, where a data set is trained on and evaluated on.
    return list(dict.fromkeys(lines))


def _probe(config: StudyConfig, device: torch.device) -> list[str]:
    """What the gradient probe will need, where that is much: it comes at the first step of the joint run."""
    if not config.training.probe.every or not any(len(config.arm(arm).tasks) > 1 for arm in config.arms):
        return []
    size = 2 if precision(config.model, device) == "bfloat16" else 4
    needed = estimate_probe_bytes(config.model, config.training, size) / 2**30
    return [f"gradient probe: up to {needed:.1f} GiB beside the model, where texts are long"] if needed >= 1 else []
