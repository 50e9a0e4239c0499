"""The nearest documents of a query: among all vectors, or among those that FAISS takes for near."""

from __future__ import annotations

import numpy as np

from unimoer.search.neighbours import check
from unimoer.search.store import Store


class Dense:
    """The living vectors of a store."""

    def __init__(self, store: Store) -> None:
        self._store, self._neighbours = store, store.neighbours
        self._dead = {name: np.array(rows, dtype=np.int64) for name, rows in store.state.parts.items()}

    @property
    def kind(self) -> str:
        """`exact`, `ivf` or `hnsw`."""
        return "exact" if self._neighbours is None else self._neighbours.kind

    def search(self, query: np.ndarray, k: int, *, exact: bool = False) -> dict[str, float]:
        """Id -> dot product with a query `[d]` of the k best, best first; equal scores by id.

        Raises:
            UserError: FAISS is to search here, and is not installed.
        """
        near = {} if exact else self._near(query, k)
        best: list[tuple[float, str]] = []
        for name, part in self._store.parts.items():
            if name in near:
                rows = near[name]
                scores = part.vectors[rows] @ query
            else:
                every = part.vectors.dot(query)
                every[self._dead[name]] = -np.inf
                least = np.partition(every, len(every) - k)[len(every) - k] if len(every) > k else -np.inf
                rows = np.flatnonzero((every >= least) & (every > -np.inf))
                scores = every[rows]
            best += zip(scores.tolist(), [part.ids[row] for row in rows], strict=True)
        return {key: score for score, key in sorted(best, key=lambda one: (-one[0], one[1]))[:k]}

    def _near(self, query: np.ndarray, k: int) -> dict[str, np.ndarray]:
        """Part -> the only rows of it that are worth a look; a part that is not named is looked through whole."""
        check(self._store.state.ann)
        return {} if self._neighbours is None else self._neighbours.search(query, k)
