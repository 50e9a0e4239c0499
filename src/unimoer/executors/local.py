"""One run after the other, in this process: data and suites are loaded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from unimoer.executors import Job
from unimoer.runs import Watch, execute


class LocalExecutor:
    workers = 1

    def run(self, jobs: Sequence[Job], watch: Watch) -> None:
        for spec, folder in jobs:
            execute(spec, folder, watch)
