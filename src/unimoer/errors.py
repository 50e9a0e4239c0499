"""The one exception that means "the user can fix this"; the command line prints it and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in input, configuration or environment. The message is one line that says what to do."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest choice, or the list of choices when none is near."""
    known = sorted(choices)
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(known)}"
