"""What is measured of a system on a collection: its two tasks alone, and whole searches made of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from unimoer.types import Task


class Measure(StrEnum):
    EMBEDDING = "embedding"
    """Its vectors over the whole corpus."""
    RERANKING = "reranking"
    """Its order of the first stage's candidates."""
    FUSED = "fused"
    """Its vectors and BM25 over the whole corpus, fused."""
    SEARCH = "search"
    """The fused list, its top reranked by the same system: a search as it is served."""
    BLENDED = "blended"
    """Its order of the candidates and the order they came in, fused."""

    @property
    def task(self) -> Task:
        """Whose table it stands in: whole searches rank the corpus, as an embedding does."""
        return Task.RERANKING if self in (Measure.RERANKING, Measure.BLENDED) else Task.EMBEDDING

    def suffix(self, first_stage: str) -> str:
        """Of the system's name in tables. A reranked order is fused with the order it was given, whosever that is."""
        given = "+bm25" if first_stage == "bm25" else "+first"
        return {Measure.FUSED: "+bm25", Measure.BLENDED: given, Measure.SEARCH: "+bm25+rerank"}.get(self, "")


def measures(tasks: Sequence[Task], *, whole: bool) -> list[Measure]:
    """What is measured of a system that serves `tasks`; fused rankings on request."""
    # In the order of stages, whatever an arm names first: reranking may need the search.
    found = [Measure(task.value) for task in Task if task in tasks]
    if whole and Task.RERANKING in tasks:
        found.append(Measure.BLENDED)
    if whole and Task.EMBEDDING in tasks:
        found.append(Measure.FUSED)
        if Task.RERANKING in tasks:
            found.append(Measure.SEARCH)
    return found
