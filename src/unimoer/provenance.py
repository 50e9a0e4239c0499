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


COMMIT = "UNIMOER_COMMIT"
"""Variable that says the commit of a copy without git, on the node of a cluster for example."""


@cache
def _commit() -> tuple[str | None, bool | None]:
    """Of the code that this process has loaded, asked once: the checkout may move on while a study runs."""
    # An installed wheel may lie inside somebody else's repository, whose commit would say nothing.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return os.environ.get(COMMIT) or None, None
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


def _gpu_name(device: str) -> str | None:
    # Configurations and tables load without torch.
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") and torch.cuda.is_available() else None


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
            gpu=_gpu_name(device),
        ),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
