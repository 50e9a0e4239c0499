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
