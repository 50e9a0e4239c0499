"""What a section of a report is made of, before it is rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from unimoer.report.table import Table


@dataclass(frozen=True)
class Drawing:
    """A figure to be drawn: `draw` is called under the report's style."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Note:
    """A term and its explanation, or a fact of several lines."""

    title: str
    lines: Sequence[str]
    warning: bool = False
    code: bool = False
    """Printed in a fixed-width font."""


@dataclass(frozen=True)
class Strip:
    """An interval on a ruler; places are in percent of its width."""

    label: str
    low: float
    high: float
    mean: float
    zero: float
    marks: Sequence[tuple[float, str]]
    """Place and label of each line of the criterion."""
    undetectable: tuple[float, float] | None


@dataclass(frozen=True)
class Card:
    title: str
    claim: str
    """In the largest type: no more than the interval supports."""
    strip: Strip | None
    text: str
    rows: Sequence[tuple[str, str, str]]
    """Label, value, interval."""


@dataclass(frozen=True)
class Lead:
    """The head of the page."""

    headline: str
    badge: str
    preliminary: Sequence[str]
    """Reasons."""
    sentences: Sequence[str]


@dataclass(frozen=True)
class Section:
    """Parts are shown in the order of these fields."""

    title: str
    paragraphs: Sequence[str] = ()
    cards: Sequence[Card] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    """Tables for those who look for them."""
    notes: Sequence[Note] = ()
    lead: Lead | None = None
    brief: Sequence[str | Table] = field(default_factory=list)
    """What the terminal shows of it."""
