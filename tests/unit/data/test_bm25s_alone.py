"""Importing BM25 starts no JAX, where that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STARTED = "raise SystemExit('JAX was started')"


def test_jax_is_left_alone_and_stays_usable(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("here = True")
    (tmp_path / "jax" / "lax.py").write_text(STARTED)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import unimoer.data.bm25; import jax; assert jax.here"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
