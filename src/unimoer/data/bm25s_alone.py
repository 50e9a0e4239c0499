"""bm25s, without JAX.

Where JAX is installed, importing bm25s starts it on all devices, and it takes three quarters of every GPU's memory for
itself: the model has no place then. Only NumPy is used here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Imports of these modules fail, as if they were not installed."""
    before: dict[str, ModuleType | None] = {name: sys.modules[name] for name in names if name in sys.modules}
    # None is how Python itself marks a module that must not be imported.
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)  # type: ignore[arg-type]


with _hidden("jax", "jax.lax"):
    import bm25s
    from bm25s.stopwords import STOPWORDS_EN

__all__ = ["STOPWORDS_EN", "bm25s"]
