"""What a run says of itself while it works: plain data, so that it can come from another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Event:
    """`say`: what is being done. `note`: a line that stays. `spent` and `skip`: units of a kind of work that are done,
    now or by an earlier call."""

    kind: Literal["say", "note", "spent", "skip"]
    text: str = ""
    detail: str = ""
    work: str = ""
    """`train embedding`, `evaluate reranking`, `reference`, ..."""
    units: int = 0
    seconds: float = 0.0


Watch = Callable[[Event], None]


def ignore(event: Event) -> None:
    """For whoever does not want to know."""
