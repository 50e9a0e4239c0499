"""Progress with the time left, as one live line on a terminal and as plain lines anywhere else."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from rich.console import Console
from rich.status import Status
from rich.text import Text

from unimoer.runs.events import Event
from unimoer.units import duration

PLAIN_EVERY = 20.0
"""Seconds between two plain lines of the same activity."""


PRIOR = {
    "train": 1.0,
    "evaluate embedding": 4.0,
    "evaluate reranking": 10.0,
    "evaluate fused": 0.1,
    "evaluate blended": 0.1,
    "evaluate search": 10.0,
    "reference": 0.1,
}
"""Rough relative cost of a unit of each kind of work, until a unit of it has been seen; `train` is one step."""


def _prior(kind: str) -> float:
    return next((cost for prefix, cost in PRIOR.items() if kind.startswith(prefix)), 1.0)


class Clock:
    """Estimates the time left from the mean cost of each kind of work done so far."""

    def __init__(self, work: Mapping[str, int], workers: int = 1) -> None:
        self.left = dict(work)
        self.workers = workers
        self._seconds: dict[str, float] = defaultdict(float)
        self._units: dict[str, int] = defaultdict(int)

    def skip(self, kind: str, units: int) -> None:
        """Work that an earlier call has done."""
        self.left[kind] = self.left.get(kind, 0) - units

    def spent(self, kind: str, units: int, seconds: float) -> None:
        self.left[kind] = self.left.get(kind, 0) - units
        self._units[kind] += units
        self._seconds[kind] += seconds

    def remaining(self) -> float | None:
        """Seconds left; None before anything is known. Kinds not yet seen are scaled from those that were."""
        expected = sum(_prior(kind) * units for kind, units in self._units.items())
        if expected == 0:
            return None
        speed = sum(self._seconds.values()) / expected
        seen = {kind: self._seconds[kind] / units for kind, units in self._units.items() if units}
        left = sum(units * seen.get(kind, _prior(kind) * speed) for kind, units in self.left.items() if units > 0)
        return left / self.workers


class Progress:
    """Says what is being done; a context manager."""

    def __init__(self, console: Console, work: Mapping[str, int], workers: int = 1) -> None:
        self.console = console
        self.clock = Clock(work, workers)
        self._status: Status | None = console.status("") if console.is_terminal else None
        self._last_title, self._last_time = "", 0.0

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def take(self, event: Event) -> None:
        """What a run says of itself."""
        match event.kind:
            case "say":
                self.update(event.text, event.detail)
            case "note":
                self.note(event.text)
            case "spent":
                self.clock.spent(event.work, event.units, event.seconds)
            case "skip":
                self.clock.skip(event.work, event.units)

    def update(self, title: str, detail: str) -> None:
        """`title` names the activity, `detail` how far it is."""
        left = self.clock.remaining()
        tail = "" if left is None else f" · {duration(left)} left"
        if self._status is not None:
            # As text: a path may hold what Rich would take for markup.
            self._status.update(Text(f"{title} · {detail}{tail}"))
            return
        now = time.monotonic()
        if title != self._last_title or now - self._last_time >= PLAIN_EVERY:
            self.console.print(f"{title} · {detail}{tail}", highlight=False, markup=False, emoji=False, soft_wrap=True)
            self._last_title, self._last_time = title, now

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
