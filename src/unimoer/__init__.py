"""UniMoER: one frozen decoder with routed LoRA experts for both stages of search."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimoer.library import Ranked as Ranked
    from unimoer.library import UniMoER as UniMoER

__version__ = "0.1.0.dev0"
__all__ = ["Ranked", "UniMoER", "__version__"]


def __getattr__(name: str) -> Any:
    """The library at its first use, so that the command line shows its help without loading torch.

    By its name, since the package lies below all of its modules and the library above most of them.
    """
    if name in ("Ranked", "UniMoER"):
        return getattr(import_module("unimoer.library"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
