"""Scores of queries' candidates, whatever the score head reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from unimoer.model.inference import Alike, Report, score, score_lists
from unimoer.model.unified import UnifiedModel


def score_candidates(
    model: UnifiedModel,
    queries: Sequence[str],
    candidates: Sequence[Sequence[str]],
    instruction: str | None = None,
    *,
    batch_tokens: int = 8192,
    report: Report | None = None,
) -> list[np.ndarray]:
    """Float32 scores `[K]` of each query's texts, in their order: logits or cosines, as the head gives them.

    A query's prompts are computed as one where they begin alike and the model allows it (`UnifiedModel.reads_apart`). A
    head that reads lists takes the candidates in the order given, best first.
    """
    if model.config.reranking.kind.reads_lists:
        return score_lists(model, queries, candidates, instruction, batch_tokens=batch_tokens, report=report)
    sizes = [len(group) for group in candidates]
    if not any(sizes):
        return [np.empty(0, dtype=np.float32) for _ in candidates]
    repeated = [query for query, size in zip(queries, sizes, strict=True) for _ in range(size)]
    ids = model.prompter.pairs(repeated, [text for group in candidates for text in group], instruction)
    if model.reads_apart:
        logits = score(model, ids, batch_tokens=batch_tokens, report=report)
        return np.split(logits, np.cumsum(sizes)[:-1])
    scores = np.empty(len(ids), np.float32)
    # Single pairs share nothing with others, and go through the model together.
    alone: list[int] = []
    start = done = 0
    for size in sizes:
        places = list(range(start, start + size))
        start += size
        alike = Alike(model, [ids[place] for place in places])
        if not alike.shared:
            alone += places
            continue
        later = None if report is None else partial(_later, report, done, len(ids))
        scores[places] = alike.score([ids[place] for place in places], batch_tokens=batch_tokens, report=later)
        done += size
    if alone:
        later = None if report is None else partial(_later, report, done, len(ids))
        scores[alone] = score(model, [ids[place] for place in alone], batch_tokens=batch_tokens, report=later)
    return np.split(scores, np.cumsum(sizes)[:-1])


def filled(model: UnifiedModel, texts: Sequence[str]) -> list[int]:
    """Places of the texts that have something in them: a head's score of a blank one means nothing."""
    return [place for place, text in enumerate(texts) if not model.prompter.is_blank(text)]


def with_blank(scores: np.ndarray, places: Sequence[int], count: int) -> np.ndarray:
    """Scores `[K]` of the texts at `places` -> `[count]`: those of blank texts are the lowest of the others, or 0."""
    whole = np.full(count, scores.min() if len(scores) else 0, np.float32)
    whole[list(places)] = scores
    return whole


def _later(report: Report, before: int, total: int, done: int, _: int) -> None:
    report(before + done, total)
