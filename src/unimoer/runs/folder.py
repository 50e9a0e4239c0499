"""The folder of a run: where things are in it, how far it is, and whose it is while somebody works there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from unimoer.assets.released import RELEASED
from unimoer.config import REFERENCES, RunSpec
from unimoer.errors import UserError, did_you_mean
from unimoer.evaluation.measures import Measure, measures
from unimoer.files import write_text
from unimoer.model.checkpoint import read_description
from unimoer.schema import Environment, RunStatus, read_record
from unimoer.types import Task

FINAL = "final"
"""The moment of an evaluation at the end of training; `at-N` are those on the way."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; the lock dies with the process, so a killed run leaves none behind.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        reason = "a file of that name is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{folder}: cannot be written: {reason}; choose another --output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(f"{folder}: another run (process {holder}) works here; wait for it or stop it") from None
        try:
            # Unbuffered: on a full disk, closing the file would try to write what it holds once more.
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}; free space") from error
        yield


def moments(spec: RunSpec) -> list[tuple[str, int | None]]:
    """Name and step of every moment at which a run is evaluated; a reference only as it is."""
    steps = spec.checkpoints if spec.train is not None else ()
    longest = max(spec.train.steps.values()) if spec.train is not None else 0
    return [*((f"at-{step}", step) for step in sorted(steps) if step < longest), (FINAL, None)]


def evaluation_folder(folder: Path, spec: RunSpec, suite: str, moment: str) -> Path:
    """Where the scores of one suite lie, one folder for each collection and task below it."""
    found = next(one for one in spec.suites if one.name == suite)
    model = spec.train.model if spec.train is not None else spec.model
    return folder / "eval" / f"{suite}-{found.key(spec.key, model)}" / moment


@dataclass(frozen=True, slots=True)
class Wanted:
    """One evaluation that a run is to have."""

    suite: str
    moment: str
    step: int | None
    collection: str
    measure: Measure
    folder: Path

    @property
    def is_done(self) -> bool:
        return (self.folder / "metrics.json").exists()


def expected(folder: Path, spec: RunSpec) -> Iterator[Wanted]:
    """Every evaluation that a run is to have, in an order in which each finds what it is made from."""
    # Nobody would serve the others.
    served = spec.arm not in REFERENCES
    for suite in spec.suites:
        for moment, step in moments(spec):
            root = evaluation_folder(folder, spec, suite.name, moment)
            # A search is made of a finished model; on the way only the two tasks are followed.
            whole = suite.suite.whole_search and served and step is None
            for name in suite.fingerprints:
                for measure in measures(suite.tasks, whole=whole):
                    yield Wanted(suite.name, moment, step, name, measure, root / name / measure.value)


def check_same(spec: RunSpec, folder: Path) -> None:
    """Raises: UserError when the folder holds another run, or a whole study; `--output` may have named any."""
    if (folder / "plan.json").exists():
        raise UserError(f"{folder}: holds a study, whose files a run would replace; choose another --output")
    if (folder / "env.json").exists():
        found = read_record(Environment, folder / "env.json").key
        if found != spec.key:
            raise UserError(f"{folder}: holds a run of other settings or data; choose another --output, or remove it")


def is_trained(folder: Path) -> bool:
    return (folder / "checkpoints" / FINAL).is_dir()


def is_done(folder: Path, spec: RunSpec) -> bool:
    """Whether everything that the specification asks for is there."""
    if not (folder / "status.json").exists() or read_record(RunStatus, folder / "status.json").state != "done":
        return False
    return all(wanted.is_done for wanted in expected(folder, spec))


def write_spec(folder: Path, spec: RunSpec) -> None:
    """As `config.yaml`: all settings, resolved. A file that says the same already is not touched."""
    file = folder / "config.yaml"
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if not file.is_file() or file.read_bytes() != text.encode():
        write_text(file, text)


def read_spec(folder: Path) -> RunSpec | None:
    """What a run folder was made from; None for a checkpoint on its own.

    Raises:
        UserError: its configuration is not of this version.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    try:
        return RunSpec.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError):
        raise UserError(f"{file}: of another version of unimoer; evaluate with the version that made it") from None


def checkpoint_folder(run: Path) -> Path:
    """The finished checkpoint of a run folder, the folder itself if it is one, or a model of this package by its name.

    Raises:
        UserError: there is none.
    """
    if str(run) in RELEASED and not run.exists():
        return RELEASED[str(run)]
    for candidate in (run, run / "checkpoints" / FINAL):
        if (candidate / "unimoer.json").is_file():
            return candidate
    if not run.exists():
        raise UserError(f"{run}: no such folder, and no released model of that name{did_you_mean(str(run), RELEASED)}")
    raise UserError(f"{run}: no finished checkpoint here (looked for checkpoints/final/unimoer.json)")


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None for one on its own."""
    # Resolved: a checkpoint may be named from inside its own folder.
    place = checkpoint.resolve()
    return place.parents[1] if place.parent.name == "checkpoints" else None


def trained_tasks(checkpoint: Path) -> tuple[Task, ...]:
    """What a checkpoint was trained for, by its run or, on its own, by its file; both tasks where neither says it."""
    run = run_of(checkpoint)
    spec = read_spec(run) if run is not None else None
    if spec is not None and spec.train is not None:
        return spec.train.tasks
    return read_description(checkpoint)["tasks"] or tuple(Task)
