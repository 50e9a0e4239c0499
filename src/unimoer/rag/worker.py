"""The process of one system: `python -m unimoer.rag.worker FOLDER SYSTEM answer|measure`.

`answer` adds a line to `systems/SYSTEM/SET.jsonl` for every question that has none, so a killed one goes on. `measure`
is a process of its own: what an earlier question or an index in the making has taken is not in it. What they are doing
goes to standard output, an event of `runs/events.py` as JSON a line, and they end with their reader.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO, get_args

import torch

from unimoer.config import RagConfig, parse_rag
from unimoer.config.rag import System
from unimoer.errors import UserError
from unimoer.evaluation.serving import weight_bytes
from unimoer.files import read_json, write_bytes, write_json
from unimoer.model.backbone import resolve_device
from unimoer.provenance import environment
from unimoer.rag.asked import ASKED, read_asked
from unimoer.rag.systems import Loaded
from unimoer.runs.events import Event, Watch
from unimoer.runs.folder import locked
from unimoer.runs.memory import peak_memory_mb, reset_peak_memory
from unimoer.runtime import favour_memory, favour_speed, release_freed
from unimoer.schema import RagAnswer, RagCosts, RagPlan, read_lines, read_record, write_record

COSTS, MODELS = "costs.json", "models.json"


def system_folder(folder: Path, system: System) -> Path:
    return folder / "systems" / system


def answers_file(folder: Path, system: System, name: str) -> Path:
    return system_folder(folder, system) / f"{name}.jsonl"


def index_folder(folder: Path, system: System, name: str) -> Path:
    return system_folder(folder, system) / f"{name}.index"


def answered(folder: Path, system: System, name: str) -> dict[str, RagAnswer]:
    """By question."""
    return {one.id: one for one in read_lines(RagAnswer, answers_file(folder, system, name), ["id"])}


def answer(folder: Path, system: System, config: RagConfig, device: torch.device, watch: Watch) -> None:
    """Every question of every set that has no line yet."""
    watch(Event("say", system, "loading"))
    loaded = Loaded.load(config, system, device)
    for name in config.questions:
        _answer(folder, name, loaded, watch)


def _answer(folder: Path, name: str, loaded: Loaded, watch: Watch) -> None:
    system = loaded.system
    questions, passages = read_asked(folder / ASKED, name)
    done = answered(folder, system, name)
    todo = [one for one in questions if one.id not in done]
    watch(Event("skip", work=system, units=len(questions) - len(todo)))
    if not todo:
        return

    def report(count: int, total: int) -> None:
        watch(Event("say", f"{system}: embedding passages of {name}", f"{count:,} of {total:,}"))

    pipeline = loaded.open(index_folder(folder, system, name), passages, report)
    _check_models(system_folder(folder, system), loaded.models())
    pipeline.warm(todo[0])
    path = answers_file(folder, system, name)
    _mend(path)
    with path.open("a", encoding="utf-8") as file:
        for number, question in enumerate(todo, len(done) + 1):
            started = time.perf_counter()
            line = json.dumps(pipeline.ask(question).model_dump(), ensure_ascii=False)
            try:
                file.write(line + "\n")
                file.flush()
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {error.strerror}; free space and run again") from None
            watch(Event("spent", work=system, units=1, seconds=time.perf_counter() - started))
            watch(Event("say", f"{system}: answering {name}", f"{number:,} of {len(questions):,}"))


def _check_models(folder: Path, found: dict[str, str]) -> None:
    """Raises: UserError when the answers that are there are of other models: one was trained again in its place."""
    path = folder / MODELS
    before = read_json(path) if path.exists() else found
    for part, name in before.items():
        if found.get(part) != name:
            raise UserError(
                f"{folder}: answers of another {part}, {name}, now {found.get(part)}; choose another --output"
            )
    write_json(path, found)


def measure(folder: Path, system: System, config: RagConfig, device: torch.device, watch: Watch) -> RagCosts:
    """Memory of a system that loads itself and answers the first questions of the first set.

    Freed memory goes back to the system at once: what is measured is what is in use. The largest size is that of
    answering, not of reading weights.
    """
    watch(Event("say", system, "measuring memory"))
    name = next(iter(config.questions))
    questions, passages = read_asked(folder / ASKED, name)
    questions = questions[: config.memory_questions]
    runtime = _memory(device)
    loaded = Loaded.load(config, system, device)
    pipeline = loaded.open(index_folder(folder, system, name), passages)
    memory = _memory(device)
    for question in questions:
        pipeline.ask(question)
    return RagCosts(
        models=loaded.models(),
        weights_mb=weight_bytes(loaded.modules()) / 2**20,
        runtime_mb=runtime,
        loaded_mb=memory,
        peak_mb=peak_memory_mb(device),
        questions=len(questions),
        asked=name,
        threads=torch.get_num_threads(),
        environment=environment(str(device)),
    )


def _memory(device: torch.device) -> float:
    """MiB in use now; the peak is measured from here on."""
    gc.collect()
    release_freed()
    reset_peak_memory(device)
    return peak_memory_mb(device)


def _mend(path: Path) -> None:
    """Cut off half a line, which a kill may leave: the next one would be written behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        write_bytes(path, content[: content.rfind(b"\n") + 1])


def main(folder: Path, system: System, step: str, events: TextIO) -> None:
    """Raises: UserError for whatever a user can put right."""

    def watch(event: Event) -> None:
        events.write(json.dumps(asdict(event)) + "\n")
        events.flush()

    plan = read_record(RagPlan, folder / "plan.json")
    config, device = parse_rag(plan.config, str(folder / "plan.json")), resolve_device(plan.device)
    with locked(system_folder(folder, system)):
        if step == "answer":
            answer(folder, system, config, device, watch)
        else:
            write_record(system_folder(folder, system) / COSTS, measure(folder, system, config, device, watch))


if __name__ == "__main__":
    (favour_memory if sys.argv[3] == "measure" else favour_speed)()
    # What a library prints is no event.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    assert sys.argv[2] in get_args(System)
    try:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], stream)  # type: ignore[arg-type]
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
