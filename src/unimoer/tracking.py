"""Metrics of a run: always as JSON lines, and on request to TensorBoard or Weights & Biases."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unimoer.errors import UserError


class JsonlWriter:
    """Appends one JSON object a line, each with a `step`; whole lines only, so a kill loses at most the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Values that are no number are written as null: JSON has no NaN."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; free space and run again") from error

    def rewind(self, step: int) -> None:
        """Drop lines past `step`, and a torn last line: a resumed run writes them anew."""
        self._file.close()
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                continue
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def close(self) -> None:
        self._file.close()


class Sink(Protocol):
    """Where numbers go besides the JSON lines."""

    def rewind(self, step: int) -> None:
        """Called once before the first number: what was logged past `step` will be logged again."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Extra `track`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("trackers: tensorboard is not installed; pip install 'unimoer[track]'") from None
        self._folder, self._writer_of = str(folder / "tensorboard"), SummaryWriter
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        # TensorBoard hides this step and those after it, as far as earlier files have them.
        self._writer = self._writer_of(self._folder, purge_step=step + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """Extra `track`; honours `WANDB_MODE=offline`. A resumed run continues under the same id.

    Weights & Biases takes every step once, so steps that are logged again are dropped there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("trackers: wandb is not installed; pip install 'unimoer[track]'") from None
        project = os.environ.get("WANDB_PROJECT", "unimoer")
        self._run = wandb.init(project=project, dir=str(folder), id=folder.name, name=folder.name, resume="allow")

    def rewind(self, step: int) -> None:
        """Nothing to do, see above."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, type[TensorBoardSink] | type[WandbSink]] = {"tensorboard": TensorBoardSink, "wandb": WandbSink}


class Tracker:
    """`metrics.jsonl` of a run folder and any sinks asked for."""

    def __init__(self, folder: Path, sinks: Sequence[str] = ()) -> None:
        self.writer = JsonlWriter(folder / "metrics.jsonl")
        self._sinks: list[Sink] = [SINKS[name](folder) for name in sinks]

    def rewind(self, step: int) -> None:
        """To be called before the first number: forget what was logged past `step`."""
        self.writer.rewind(step)
        for sink in self._sinks:
            sink.rewind(step)

    def log(self, record: Mapping[str, Any]) -> None:
        """A record has `step`, `task` and `domain`; its numbers go to the sinks as `task/domain/name`."""
        self.writer.write(record)
        prefix = f"{record['task']}/{record['domain']}"
        numbers = {
            f"{prefix}/{name}": float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and name != "step"
        }
        for sink in self._sinks:
            sink.log(numbers, record["step"])

    def close(self) -> None:
        self.writer.close()
        for sink in self._sinks:
            sink.close()
