"""A question and its passages as the one message that a generator gets, and the answer in what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unimoer.config.rag import RagPromptConfig

_FIELDS = re.compile(r"\{(question|passages|passage|number)\}")


def render(config: RagPromptConfig, question: str, passages: Sequence[str]) -> str:
    """The message; without passages, that of a closed book."""
    if not passages:
        return _fill(config.without, question=question)
    parts = [
        _fill(config.passage, number=str(number), passage=cut(text, config.passage_words))
        for number, text in enumerate(passages, 1)
    ]
    return _fill(config.with_passages, question=question, passages="".join(parts))


def cut(text: str, words: int) -> str:
    """The first words of a text, white space between them as it is."""
    found = re.match(rf"\s*(?:\S+\s+){{0,{words - 1}}}\S+", text)
    return found[0].strip() if found else ""


def first_line(text: str) -> str:
    """What a generator is taken to answer: the first line with something in it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _fill(template: str, **fields: str) -> str:
    # One pass, so that braces inside of a text are never taken for a field.
    return _FIELDS.sub(lambda match: fields.get(match[1], match[0]), template)
