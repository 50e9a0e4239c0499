"""Settings of the process itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from unimoer import runtime


def test_threads_spin_for_a_short_while_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    runtime.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == str(runtime.SPINS)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    runtime.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    runtime.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_program_sets_it_before_pytorch_is_loaded() -> None:
    """OpenMP reads it once, when it is loaded."""
    code = "import sys, unimoer.cli, unimoer.runtime as r; r.share_cores(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
def test_a_passing_thread_takes_its_openmp_threads_along() -> None:
    code = """
import os, time, torch
from unimoer.runtime import in_passing
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
in_passing(lambda: torch.ones(1 << 20).exp())
end = time.monotonic() + 30
while tasks() > before and time.monotonic() < end:
    time.sleep(0.01)
between = tasks()
torch.ones(1 << 20).exp()
print(between - before, tasks() > between)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["0", "True"]


def test_what_fails_in_a_passing_thread_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        runtime.in_passing(lambda: 1 // 0)
