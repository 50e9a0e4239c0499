"""A trained model in use: texts in; vectors, scores and ranked lists out."""

from unimoer.library.model import Ranked, UniMoER

__all__ = ["Ranked", "UniMoER"]
