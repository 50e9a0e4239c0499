"""Exact match and token F1 of short answers, and whether a text holds an answer.

Normalisation and both measures are SQuAD's: Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of
Text, EMNLP 2016. Of several accepted answers the best counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VERDICTS = {"yes", "no"}


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words parted by single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Iterable[str]) -> float:
    """1.0 where the answer, normalised, is an accepted one."""
    found = normalise(answer)
    return float(any(found == normalise(one) for one in accepted))


def token_f1(answer: str, accepted: Iterable[str]) -> float:
    """The harmonic mean of precision and recall over words, each as often as it stands there.

    Where an answer has no word after normalisation, it is 1.0 if the other has none either, as in SQuAD 2.0.
    """
    return max((_f1(normalise(answer).split(), normalise(one).split()) for one in accepted), default=0.0)


def contains(text: str, accepted: Iterable[str]) -> bool:
    """Whether an accepted answer stands in a text as whole words in their order, both normalised."""
    padded = f" {normalise(text)} "
    return any(f" {one} " in padded for one in map(normalise, accepted) if one)


def is_verdict(accepted: Sequence[str]) -> bool:
    """Whether the answer is yes or no, which say nothing about a passage that holds the word."""
    return {normalise(one) for one in accepted} <= _VERDICTS


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))
