"""The command line in processes that have it imported already, for tests that start and stop it again and again.

Such a process is forked from a server that has imported everything and computed nothing: its own process in every other
respect, without the seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import tiny
from unimoer.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tiny", "unimoer.executors.local", "unimoer.report.html", "unimoer.runs.execute", "unimoer.studies.run"]
)


def start(arguments: Sequence[str | Path], *, cache: Path, err: Path) -> BaseProcess:
    """Start `unimoer ARGUMENTS`, its stderr into a file. Its `exitcode` is -N where signal N ended it."""
    environment = tiny.environment(cache)
    process = _CONTEXT.Process(target=_run, args=([str(word) for word in arguments], environment, err))
    # The first of them starts the server, whose libraries read the environment when they are imported.
    with mock.patch.dict(os.environ, environment):
        process.start()
    return process


def _run(arguments: list[str], environment: dict[str, str], err: Path) -> None:
    os.environ.update(environment)
    # Into the descriptors, so that what a library or a dying interpreter prints lands there too.
    for path, stream in ((Path(os.devnull), sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["unimoer", *arguments]
    main(arguments)
