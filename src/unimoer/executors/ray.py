"""Runs on the workers of a Ray cluster, or of this machine; extra `cluster`.

A worker writes into the run's folder, so all of them must see the same file system. A lost worker's run is given to
another, which goes on from its last checkpoint. Progress comes back through one queue and is shown in one place.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimoer.config import RunSpec
from unimoer.errors import UserError
from unimoer.executors import TRIES, Job
from unimoer.runs import Event, Watch, execute
from unimoer.runtime import favour_speed

LOST = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError")
"""What Ray raises for a worker that is gone: with its process, with its machine, or for want of memory."""
POLL = 0.5
"""Seconds between two looks at the queue."""
PATIENCE = 10.0
"""Seconds that a cluster has to answer."""


class RayExecutor:
    """`workers` runs at a time; each asks for the resources of its specification."""

    def __init__(self, workers: int) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray: Ray is not installed; pip install 'unimoer[cluster]'") from None
        self.workers = workers
        self._ray: Any = ray

    def run(self, jobs: Sequence[Job], watch: Watch) -> None:
        for spec, _ in jobs:
            if spec.device.startswith("cuda") and spec.resources.gpus == 0:
                # Ray hides the GPUs from a task that asks for none.
                raise UserError("--executor ray: runs on cuda must ask for a GPU; add --set resources.gpus=1")
        if not jobs:
            # A cluster takes seconds to start.
            return
        ray = self._ray
        ours = not ray.is_initialized()
        if ours:
            self._connect()
        try:
            self._run(jobs, watch)
        finally:
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        # Ray's own pages about usage and a dashboard are of no use to a command.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if address:
                _knock(address)
                self._ray.init(address=address, log_to_driver=False)
            else:
                self._ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--executor ray: no cluster at {address or 'this machine'}: {reason}; check RAY_ADDRESS"
            ) from None

    def _run(self, jobs: Sequence[Job], watch: Watch) -> None:
        ray = self._ray
        from ray.util.queue import Empty, Queue

        queue = Queue(actor_options={"num_cpus": 0})
        waiting = [(spec, folder, 1) for spec, folder in jobs]
        running: dict[Any, tuple[RunSpec, Path, int]] = {}
        failed: UserError | None = None
        try:
            while running or (waiting and failed is None):
                while waiting and failed is None and len(running) < self.workers:
                    spec, folder, attempt = waiting.pop(0)
                    running[self._start(spec, folder, queue)] = (spec, folder, attempt)
                finished, _ = ray.wait(list(running), timeout=POLL)
                try:
                    while True:
                        watch(queue.get_nowait())
                except Empty:
                    pass
                for reference in finished:
                    spec, folder, attempt = running.pop(reference)
                    try:
                        problem = ray.get(reference)
                    except tuple(getattr(ray.exceptions, name) for name in LOST) as error:
                        if attempt == TRIES:
                            failed = UserError(f"{folder}: its worker was lost {TRIES} times: {_first(error)}")
                            continue
                        watch(Event("note", f"{spec.arm} seed {spec.seed}: its worker was lost; another goes on"))
                        waiting.insert(0, (spec, folder, attempt + 1))
                        continue
                    if problem is not None:
                        # The others are left to finish: nothing that they do is lost.
                        failed = UserError(problem)
        finally:
            queue.shutdown()
        if failed is not None:
            raise failed

    def _start(self, spec: RunSpec, folder: Path, queue: Any) -> Any:
        asked = spec.resources
        options: dict[str, Any] = {"num_cpus": asked.cpus, "num_gpus": asked.gpus, "max_retries": 0}
        if asked.memory_gb is not None:
            options["memory"] = int(asked.memory_gb * 2**30)
        if not os.environ.get("RAY_ADDRESS"):
            # Workers of this machine share its processors evenly, whatever a run would ask for elsewhere.
            options["num_cpus"] = min(1.0, asked.cpus)
        task = self._ray.remote(**options)(_work)
        return task.remote(spec.model_dump_json(), str(folder.resolve()), str(Path.cwd()), queue)


def _work(spec: str, folder: str, where: str, queue: Any) -> str | None:
    """In the worker: None when done, or what the user can mend. Relative paths mean what they meant in `where`."""
    favour_speed()
    os.chdir(where)
    try:
        execute(RunSpec.model_validate_json(spec), Path(folder), queue.put)
    except UserError as error:
        return str(error)
    return None


def _knock(address: str) -> None:
    """Raises: OSError where nobody answers. Ray itself would try for minutes, and print its own lines meanwhile."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
