"""A server in a process of its own, on this machine alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path

    def stop(self) -> int:
        """As an orchestrator does; returns the exit status."""
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def server(model: str | Path, log: Path, *options: str | Path, key: str = "") -> Iterator[Server]:
    """`unimoer serve` once it is ready, on a free port; killed at the end if it still runs."""
    command: Sequence[str] = [sys.executable, "-m", "unimoer", "serve", str(model), "--port", "0", *map(str, options)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, text=True, env={**os.environ, "UNIMOER_API_KEY": key})
    try:
        yield Server(process, _address(process, log), log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        said = log.read_text()
        if process.poll() is not None:
            raise AssertionError(said)
        if "http://" in said:
            url = said.split(" at ", 1)[1].split()[0]
            try:
                if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                    return url
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    raise AssertionError("the server did not come up")
