"""Several runs at a time on this machine, each in a process of its own.

Two runs of one thread each end sooner than two of two threads one after the other, and one run seldom fills a GPU. A
lost worker's run is given to a new one, which goes on from its last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from unimoer.config import RunSpec
from unimoer.errors import UserError
from unimoer.executors import TRIES, Job
from unimoer.runs import Event, Watch, execute
from unimoer.runtime import favour_speed

# Workers are forked from a server that has imported what they need and computed nothing: a fork of this process could
# not use a GPU that it has touched.
if "forkserver" in multiprocessing.get_all_start_methods():
    _CONTEXT: Any = multiprocessing.get_context("forkserver")
    _CONTEXT.set_forkserver_preload(["unimoer.runs.execute"])
else:
    _CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a worker says last of a run: nothing, what the user can mend, or where it broke."""

    problem: str | None = None
    broken: str | None = None


@dataclass(slots=True)
class Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    attempt: int = 0

    def give(self, job: Job, attempt: int) -> None:
        self.job, self.attempt = job, attempt
        spec, folder = job
        # One that is gone already is found when it is listened to.
        with suppress(OSError):
            self.pipe.send((spec.model_dump_json(), str(folder)))


class ProcessExecutor:
    """`workers` runs at a time, which share this machine's cores evenly."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[Job], watch: Watch) -> None:
        waiting = [(job, 1) for job in jobs]
        threads = max(1, torch.get_num_threads() // self.workers)
        workers = [_start(threads) for _ in range(min(self.workers, len(jobs)))]
        failed: Exception | None = None
        try:
            while True:
                for worker in workers:
                    if worker.job is None and waiting and failed is None:
                        worker.give(*waiting.pop(0))
                busy = {worker.pipe: worker for worker in workers if worker.job is not None}
                if not busy:
                    break
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]
                    try:
                        said = worker.pipe.recv()
                    except (EOFError, OSError):
                        workers.remove(worker)
                        lost = _lost(worker, waiting, watch)
                        failed = failed or lost
                        if failed is None:
                            workers.append(_start(threads))
                        continue
                    if isinstance(said, Event):
                        watch(said)
                        continue
                    worker.job = None
                    # The others are left to finish: nothing that they do is lost.
                    if said.broken is not None:
                        failed = RuntimeError(f"in a worker:\n{said.broken}")
                    elif said.problem is not None:
                        failed = failed or UserError(said.problem)
        finally:
            for worker in workers:
                worker.pipe.close()
                if worker.job is not None:
                    worker.process.terminate()
            for worker in workers:
                # An idle one ends by itself when its pipe is closed.
                worker.process.join()
        if failed is not None:
            raise failed


def _lost(worker: Worker, waiting: list[tuple[Job, int]], watch: Watch) -> UserError | None:
    """Puts the run of a worker that is gone in front of the others; says so once it was lost too often."""
    assert worker.job is not None
    spec, folder = worker.job
    worker.process.join()
    worker.pipe.close()
    if worker.attempt == TRIES:
        code = worker.process.exitcode
        return UserError(f"{folder}: its worker was lost {TRIES} times, the last with exit code {code}")
    watch(Event("note", f"{spec.arm} seed {spec.seed}: its worker was lost; another goes on"))
    waiting.insert(0, (worker.job, worker.attempt + 1))
    return None


def _start(threads: int) -> Worker:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, threads, dict(os.environ)), daemon=True)
    process.start()
    # Or the end of the worker would not be the end of the pipe.
    theirs.close()
    return Worker(process, ours)


def _work(pipe: Connection, threads: int, environment: dict[str, str]) -> None:
    """In the worker: one run after the other, until the pipe is closed."""
    os.environ.update(environment)
    # The first process is told, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    favour_speed()
    torch.set_num_threads(threads)

    def send(said: Event | Ended) -> None:
        try:
            pipe.send(said)
        except OSError:
            # Whoever asked is gone; the run goes on from its checkpoint when it is asked for again.
            raise SystemExit from None

    while True:
        try:
            spec, folder = pipe.recv()
        except (EOFError, OSError):
            return
        ended = Ended()
        try:
            execute(RunSpec.model_validate_json(spec), Path(folder), send)
        except UserError as error:
            ended = Ended(problem=str(error))
        except Exception:
            ended = Ended(broken=traceback.format_exc())
        send(ended)
