"""What a study is: data, and one function from per-query scores to estimates. It trains nothing and opens no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unimoer.config import StudyConfig
from unimoer.schema import Decision
from unimoer.schema.results import Points, Recovery, RoutingSummary
from unimoer.studies.arms import with_starts
from unimoer.studies.evidence import Evidence


@dataclass(frozen=True)
class Estimates:
    """What a study makes of its scores; parts that it does not estimate are empty."""

    decision: Decision | None = None
    recovery: Recovery | None = None
    routing: dict[str, RoutingSummary] = field(default_factory=dict)
    points: Points | None = None


Families = dict[str, list[str]]


@dataclass(frozen=True)
class Study:
    """One question, as the runs and the estimate that answer it."""

    name: str
    """As the command line has it."""
    title: str
    config: str
    """The shipped configuration that it runs by default."""
    quick: str
    """The one of its quick tier."""
    estimate: Callable[[Evidence], Estimates]
    sections: tuple[str, ...]
    """Of its report, in order; see `report.sections`."""
    families: Callable[[StudyConfig, Sequence[str]], Families] = lambda config, collections: {}
    """The comparisons that are corrected together, declared in the plan before the first run."""
    check: Callable[[StudyConfig], None] = lambda config: None
    """Raises UserError for a configuration that cannot answer the question."""
    arms: tuple[str, ...] | None = None
    """Arms in place of the configuration's."""
    starts: bool = False
    """Whether the untrained start of every learned router is among the arms, at no extra typing."""
    renamed: tuple[str, str] | None = None
    """Part of the configuration's name, and what stands for it in the name of the output folder."""

    def prepare(self, config: StudyConfig) -> StudyConfig:
        """The configuration that is run: checked, and with the arms that the study adds."""
        found = with_starts(config) if self.starts else config
        self.check(found)
        if self.renamed is not None:
            found = found.model_copy(update={"name": found.name.replace(*self.renamed)})
        return found
