"""Fisher's randomisation test over queries: it compares trained models, and knows nothing of how they were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimoer.evaluation.statistics.pivot import Array

DRAWS = 10_000
SEED = 20240229
"""Of the random signs, not of the training: fixed, so that the same files always give the same p-value."""

_EXACT_UP_TO = 16
_BYTES_AT_ONCE = 2**20


def sign_flip(terms: Sequence[Array], draws: int = DRAWS, seed: int = SEED) -> float:
    """Two-sided p-value of "the two systems are exchangeable on every query".

    `terms` are the queries' weighted differences, data set by data set, which sum up to the statistic T; their signs
    are flipped at random. p = (1 + #{|T*| >= |T|}) / (draws + 1); with at most 16 queries that differ, all sign
    patterns are enumerated and p is exact.

    Source: Smucker, Allan and Carterette (CIKM 2007).
    """
    values = np.concatenate(list(terms))
    if not np.isfinite(values).all():
        return float("nan")
    # A query on which both agree adds 0 under either sign: dropping it changes nothing and makes more cases exact.
    values = values[values != 0.0]
    # Rounding must not turn a tie with the observed value into a smaller one.
    threshold = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if values.size <= _EXACT_UP_TO:
        signs = (np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1  # [2^n, n]
        return float(np.mean(np.abs((2.0 * signs - 1.0) @ values) >= threshold))

    table = _signed_sums(values)
    generator = np.random.default_rng(seed)
    groups = np.arange(len(table))
    extreme, done = 0, 0
    while done < draws:
        # Whole draws at a time, so that the random stream does not depend on the size of a chunk.
        size = min(draws - done, max(1, _BYTES_AT_ONCE // len(table)))
        patterns = np.frombuffer(generator.bytes(size * len(table)), np.uint8).reshape(size, len(table))
        extreme += int(np.count_nonzero(np.abs(table[groups, patterns].sum(axis=1)) >= threshold))
        done += size
    return (1 + extreme) / (draws + 1)


def _signed_sums(values: Array) -> Array:
    """Sums of each eight values under all 256 patterns of their signs, `[groups, 256]`: one random byte picks one."""
    padded = np.zeros(-(-values.size // 8) * 8)
    padded[: values.size] = values
    signs = 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1) - 1.0  # [256, 8]
    return np.einsum("gi,pi->gp", padded.reshape(-1, 8), signs)
