"""Settings of the process itself, to be made before its first tensor."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SPINS = 10_000
"""Some tens of microseconds: longer than what lies between the products of a layer."""


def favour_speed() -> None:
    """Keep freed blocks for the next step, and let large tensors lie in large pages.

    A training step allocates and frees hundreds of megabytes of activations. By default glibc returns them, and the
    next step pays for every page again: 45,000 page faults a step of 12 layers and 1,920 tokens, 24 with this setting.
    The process keeps its peak size instead. Pages of 2 MiB spare the look-up of 512 small ones: 4 to 9% of such a step.
    Does nothing where there is no glibc.
    """
    _set(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)
    # PyTorch reads this once, at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def share_cores() -> None:
    """Wait for the other threads of a product by spinning for a short while only; before PyTorch is loaded.

    GNU OpenMP spins for milliseconds by default. On cores that other processes use too, a thread that spins keeps the
    one that it waits for from running: a query then takes ten or twenty times as long. See docs/benchmarks.md.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def in_passing(function: Callable[[], Result]) -> Result:
    """Call it in a thread that ends, where another thread will own the model.

    Every thread that computes gets OpenMP threads of its own, for as long as it lives. With more of them than cores GNU
    OpenMP lets none spin: each sleeps between two products, and a batch takes half as long again.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def favour_memory() -> None:
    """Hand every freed tensor back at once: the process is as small as it can be, and slower.

    By default glibc keeps what it thinks will be asked for again, and blocks of many sizes leave gaps between them.
    """
    _set(mmap_threshold=1 << 16, trim_threshold=1 << 16)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "0"


def release_freed() -> None:
    """Hand freed memory back to the system, gaps between blocks in use included; nothing where there is no glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _set(*, mmap_threshold: int, trim_threshold: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, mmap_threshold)
        libc.mallopt(M_TRIM_THRESHOLD, trim_threshold)
    except (OSError, AttributeError):
        return
