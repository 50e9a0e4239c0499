"""An index as it was when it was opened: what of it fits a query, and how the order of the best comes about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unimoer.data.prompts import is_blank
from unimoer.evaluation.fusion import combine, fuse
from unimoer.library.hits import Hit, timed
from unimoer.search.dense import Dense
from unimoer.search.store import Store
from unimoer.types import Run

WORDS = 0.5
"""Weight of BM25's standardised scores where those of the vectors have 1: chosen on dev (docs/results/levers.md)."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Documents of one query, best first."""

    scores: dict[str, float]
    """Of all that were found, by id, in their order."""
    texts: list[str]
    """Of the first of them."""
    milliseconds: dict[str, float]


class Snapshot:
    """The documents of a store. It stays what it is while others write, and threads may share it."""

    def __init__(self, store: Store) -> None:
        self.store, self.rows, self.dense = store, store.rows, Dense(store)

    def retrieve(
        self, query: str, vector: np.ndarray | None, *, words: bool, wide: int, texts: int, rrf: bool, exact: bool
    ) -> Retrieved:
        """By the vector `[d]` if there is one, and by words if they are wanted; `wide` documents each.

        Raises:
            UserError: the index is searched by FAISS, which is not installed.
        """
        took: dict[str, float] = {}
        runs: list[tuple[Run, float]] = []
        if vector is not None:
            with timed(took, "dense"):
                runs.append(({"": self.dense.search(vector, wide, exact=exact)}, 1.0))
        if words:
            with timed(took, "bm25"):
                bm25 = self.store.bm25
                runs.append(({} if bm25 is None else bm25.search({"": query}, wide), WORDS))
        found = _together(runs, rrf)
        order = sorted(found, key=lambda key: (-found[key], key))
        listed = [self.store.text(self.rows[key]) for key in order[:texts]]
        return Retrieved({key: found[key] for key in order}, listed, took)


def arrange(found: Retrieved, k: int, own: Sequence[float] | None = None) -> list[Hit]:
    """The k best, of which the first texts may have been scored again: `own`, in their order.

    Their order is that of both kinds of scores together, standardised. Those that were not scored again lie below, as
    far apart as they were.
    """
    order, scores = list(found.scores), dict(found.scores)
    reranking: dict[str, float] = {}
    if own:
        top, rest = order[: len(own)], order[len(own) :]
        reranking = dict(zip(top, own, strict=True))
        both = dict(combine([({"": reranking}, 1.0), ({"": {key: scores[key] for key in top}}, WORDS)])[""])
        blank = {key for key, text in zip(top, found.texts, strict=False) if is_blank(text)}
        for key in blank:
            # Nothing was read of it: it is no better than the worst of those that were.
            both[key] = min(both.values())
        order = sorted(top, key=lambda key: (key in blank, -both[key], key)) + rest
        lowest = both[order[len(top) - 1]] - (scores[rest[0]] if rest else 0.0)
        scores = {**both, **{key: scores[key] + lowest for key in rest}}
    texts = dict(zip(found.scores, found.texts, strict=False))
    return [Hit(key, scores[key], texts[key], found.scores[key], reranking.get(key)) for key in order[:k]]


def _together(runs: Sequence[tuple[Run, float]], rrf: bool) -> Mapping[str, float]:
    if len(runs) == 1:
        return runs[0][0].get("", {})
    both = fuse([run for run, _ in runs]) if rrf else combine(runs)
    return both.get("", {})
