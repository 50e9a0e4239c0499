"""Arms x seeds, one after another. Finished runs are skipped, a half-done run goes on, two runners never meet."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unimoer.config import ExperimentConfig
from unimoer.data.prepare import left_out, prepare
from unimoer.errors import UserError
from unimoer.experiments.plan import (
    BM25,
    PlannedRun,
    arms_table,
    check_verdict,
    describe,
    describe_arms,
    plan_arm,
    plan_runs,
)
from unimoer.experiments.progress import Progress
from unimoer.experiments.run import RunContext, check_same_run, execute, is_done
from unimoer.experiments.summary import write_results
from unimoer.files import read_json, write_json


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the experiment folder; the lock dies with the process, so a killed run leaves none behind.

    Raises:
        UserError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder: {error.strerror}; choose another --output") from error
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(f"{folder}: another run (process {holder}) works here; wait for it or stop it") from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def workload(config: ExperimentConfig, runs: Sequence[PlannedRun]) -> dict[str, int]:
    """Units of each kind of work, for the estimate of the time left."""
    work: Counter[str] = Counter()
    domains = sum(domain.evaluate for domain in config.data.domains.values())
    for run in runs:
        for task in run.tasks:
            if run.mode is not None:
                work[f"train {task}"] += config.steps(run.mode, task)
            work["bm25" if run.arm == BM25 else f"evaluate {task}"] += domains
    return dict(work)


def run_experiment(
    config: ExperimentConfig, folder: Path, *, device: torch.device, command: str, console: Console
) -> None:
    """Run or continue an experiment and write `plan.json`, `results.json` and `decision.json`.

    Raises:
        UserError: the folder is in use, the data or the model is wrong, or training diverged.
    """
    with locked(folder):
        # Before anything that takes time: an arm may be impossible, or the verdict without what it compares.
        check_verdict(config)
        arms = describe_arms(config)
        console.print(arms_table(arms))
        runs = plan_runs(config)
        todo = [run for run in runs if not is_done(folder / "runs" / run.folder)]
        with Progress(console, workload(config, todo)) as progress:
            progress.update("preparing data", ", ".join(config.data.domains))
            domains = prepare(config.data, depth=config.evaluation.rerank_depth)
            for note in left_out(domains):
                progress.note(note)
            context = RunContext(config, domains, device, progress)
            # Finished runs too: their scores must not be set beside those of other data.
            for run in runs:
                check_same_run(context, run, folder / "runs" / run.folder)
            plan = describe(config, runs, domains, arms, command=command)
            if _drop_stale_results(folder, plan):
                progress.note(f"{folder}: the plan has changed; its earlier verdict and report are taken away")
            write_json(folder / "plan.json", plan)
            if len(todo) < len(runs):
                progress.note(f"{len(runs) - len(todo)} of {len(runs)} runs are already done in {folder}")
            for run in todo:
                execute(context, run, folder / "runs" / run.folder)
            progress.update("statistics", f"{config.evaluation.bootstrap} draws")
            write_results(folder)


def _drop_stale_results(folder: Path, plan: dict[str, Any]) -> bool:
    """A verdict over other runs must not stand beside this plan until its own is there; `runs/` keeps all numbers."""
    if not (folder / "plan.json").exists():
        return False
    old = read_json(folder / "plan.json")
    if all(old.get(key) == plan[key] for key in ("runs", "criterion")):
        return False
    found = [folder / name for name in ("decision.json", "results.json", "report.html", "report.md")]
    for file in found:
        file.unlink(missing_ok=True)
    for name in ("tables", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return True


def run_single(config: ExperimentConfig, output: Path | None, *, device: torch.device, console: Console) -> Path:
    """Train and evaluate the one run of a configuration with one arm and one seed; returns its folder."""
    run = plan_arm(config, config.arms[0], config.seeds[0])
    folder = output or Path("runs") / run.folder
    with locked(folder):
        if is_done(folder):
            if read_json(folder / "env.json")["config_hash"] != config.run_hash(run.arm, run.seed):
                raise UserError(f"{folder}: holds a run of another configuration; choose another --output")
            console.print(f"{folder}: already done", highlight=False, markup=False)
            return folder
        with Progress(console, workload(config, [run])) as progress:
            progress.update("preparing data", ", ".join(config.data.domains))
            domains = prepare(config.data, depth=config.evaluation.rerank_depth)
            execute(RunContext(config, domains, device, progress), run, folder)
    return folder
