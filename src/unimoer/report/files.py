"""What a report is made of: the result files of an experiment folder, read once and checked once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimoer import files
from unimoer.errors import UserError
from unimoer.types import Task, TrainingMode

SPECIALIST = {Task.EMBEDDING: TrainingMode.EMB_ONLY.value, Task.RERANKING: TrainingMode.RANK_ONLY.value}
JOINT = TrainingMode.JOINT_SINGLE.value
UNTRAINED = "untrained"
BM25 = "bm25"


@dataclass(frozen=True)
class Experiment:
    """The parsed `decision.json` and `results.json` of a folder, and access to the logs of its runs."""

    folder: Path
    decision: Mapping[str, Any]
    results: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Experiment:
        """Raises UserError in one line for a missing or broken file."""
        return cls(folder, read_json(folder / "decision.json"), read_json(folder / "results.json"))

    @property
    def metric(self) -> str:
        return str(self.decision["criterion"]["metric"])

    @property
    def datasets(self) -> list[str]:
        return sorted(self.decision["datasets"])

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.decision["seeds"]]

    @property
    def recovery(self) -> Mapping[str, Any]:
        """Comparison of the arms for both tasks; empty where `joint_single` is the only one, or in older files."""
        found: Mapping[str, Any] = self.results.get("recovery") or {}
        return found

    @property
    def extra_arms(self) -> list[str]:
        """Arms for both tasks beside `joint_single`, best first."""
        return [arm for arm in self.recovery["overall"]["ranking"] if arm != JOINT] if self.recovery else []

    @property
    def arm_details(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings and costs by arm."""
        found: Mapping[str, Mapping[str, Any]] = self.results.get("arm_details") or {}
        return found

    def settings(self, arm: str) -> Mapping[str, Any]:
        """What an arm is, as `plan.json` has it; empty for arms of older plans."""
        found: Mapping[str, Any] = self.arm_details.get(arm, {}).get("settings") or {}
        return found

    def router(self, arm: str) -> str | None:
        """Type of an arm's router; None for one LoRA, and where it is not known."""
        router: str | None = self.settings(arm).get("router")
        return router

    @property
    def routing(self) -> Mapping[str, Mapping[str, Any]]:
        """What the routers settled on, by arm; only of arms whose routers weigh their experts."""
        found: Mapping[str, Mapping[str, Any]] = self.results.get("routing") or {}
        return found

    def runs(self, arm: str) -> list[Mapping[str, Any]]:
        return [run for run in self.results["runs"] if run["arm"] == arm]

    def log(self, run: Mapping[str, Any], name: str, identity: Sequence[str]) -> list[dict[str, Any]]:
        """Lines of a run's JSONL log, the last for each value of the `identity` fields; empty where there is no log.

        A killed and resumed run may have logged a step twice or left half a line.
        """
        path = self.folder / "runs" / str(run["folder"]) / name
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        if not path.exists():
            return []
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                line = json.loads(text)
                lines[tuple(line.get(key) for key in identity)] = line
            except (json.JSONDecodeError, AttributeError):
                continue
        return list(lines.values())

    def config(self, run: Mapping[str, Any]) -> str:
        """What a run did, as text: arm.yaml, or the shared config.yaml; empty for a run that has neither."""
        folder = self.folder / "runs" / str(run["folder"])
        found = [folder / name for name in ("arm.yaml", "config.yaml") if (folder / name).exists()]
        return found[0].read_text(encoding="utf-8") if found else ""


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError in one line for a missing or broken one."""
    if not path.is_file():
        raise UserError(f"{path}: missing; `unimoer analyze` writes it from a finished experiment")
    return files.read_json(path)
