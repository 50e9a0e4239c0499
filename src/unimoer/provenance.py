"""Where a number comes from: commit, versions, hardware. Every result file holds this."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from unimoer.schema.run import Environment, Hardware

PACKAGES = ("unimoer", "torch", "transformers", "tokenizers", "numpy", "bm25s", "pytrec-eval-terrier", "peft")


@cache
def _commit() -> tuple[str | None, bool | None]:
    """Of the code that this process has loaded, asked once: the checkout may move on while a study runs."""
    # An installed wheel may lie inside somebody else's repository, whose commit would say nothing.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str) -> Environment:
    """What a reader needs to judge or repeat a measurement made here."""
    commit, dirty = _commit()
    return Environment(
        git_commit=commit,
        git_dirty=dirty,
        packages={name: found for name in PACKAGES if (found := _version(name))},
        python=platform.python_version(),
        hardware=Hardware(
            cpu=_cpu_name(),
            cores=os.cpu_count(),
            memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
            device=device,
        ),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
