"""From a configuration to a folder of answers and their table: prepare, answer and measure system by system, sum up.

    FOLDER/ plan.json  config.yaml  results.json  report.md
            asked/SET.questions.jsonl  asked/SET.passages.jsonl
            systems/SYSTEM/{SET.jsonl, SET.index/, costs.json}

Every system answers in a fresh process and is measured in another one. The same command goes on behind the last
question that was answered.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from unimoer.config import RagConfig
from unimoer.config.rag import System
from unimoer.errors import UserError
from unimoer.executors.progress import Progress
from unimoer.files import new_folder, write_text
from unimoer.rag.asked import ASKED, read_asked, write_asked
from unimoer.rag.summary import summarise
from unimoer.rag.table import report
from unimoer.rag.worker import COSTS, answered, system_folder
from unimoer.runs.events import Event
from unimoer.runs.folder import locked
from unimoer.schema import RagPlan, RagResults, read_record, write_record


def run_rag(config: RagConfig, folder: Path, *, device: torch.device, command: str, console: Console) -> RagResults:
    """Run or continue an experiment; `results.json` and `report.md` are functions of the other files.

    Raises:
        UserError: the folder is in use or holds another experiment, or a source, model or server is wrong.
    """
    existed = folder.exists()
    with locked(folder):
        try:
            plan = _plan(config, folder, str(device), console)
        except BaseException:
            # An experiment that cannot begin leaves nothing behind.
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        questions = sum(one.questions for one in plan.asked.values())
        with Progress(console, dict.fromkeys(config.systems, questions)) as progress:
            for system in config.systems:
                if _is_answered(folder, system, plan):
                    progress.take(Event("skip", work=system, units=questions))
                else:
                    _work(folder, system, "answer", progress)
                if not (system_folder(folder, system) / COSTS).exists():
                    _work(folder, system, "measure", progress)
        results = summarise(config, plan, folder, command)
        write_record(folder / "results.json", results)
        write_text(folder / "report.md", report(results))
    return results


def _plan(config: RagConfig, folder: Path, device: str, console: Console) -> RagPlan:
    """What is asked, prepared at the first call; later ones must be of the same settings."""
    content = config.model_dump(mode="json")
    if (folder / "env.json").exists() or ((folder / "plan.json").exists() and not (folder / ASKED).exists()):
        raise UserError(f"{folder}: holds a run or a study; choose another --output")
    if (folder / "plan.json").exists():
        plan = read_record(RagPlan, folder / "plan.json")
        changed = _first_change({"device": plan.device, **plan.config}, {"device": device, **content})
        if changed:
            raise UserError(f"{folder}: holds an experiment of other settings ({changed}); choose another --output")
        return plan
    with new_folder(folder / ASKED) as temporary:
        asked = {}
        for name, questions in config.questions.items():
            console.print(f"preparing questions · {name}", highlight=False)
            asked[name] = write_asked(name, questions, config.seed, temporary)
    for name, one in asked.items():
        console.print(f"{name}: {one.questions:,} questions, {one.passages:,} passages", highlight=False)
        for reason, count in one.left_out.items():
            console.print(f"{name}: left out: {reason}: {count:,}", highlight=False, markup=False)
    write_text(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    plan = RagPlan(config=content, device=device, asked=asked)
    write_record(folder / "plan.json", plan)
    return plan


def _first_change(before: Any, after: Any, path: str = "") -> str:
    """`retrieval.rerank: 10, now 5`; empty where nothing differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if found := _first_change(before.get(key), after.get(key), f"{path}.{key}" if path else str(key)):
                return found
        return ""
    return "" if before == after else f"{path}: {json.dumps(before)}, now {json.dumps(after)}"


def _is_answered(folder: Path, system: System, plan: RagPlan) -> bool:
    wanted = {name: {one.id for one in read_asked(folder / ASKED, name)[0]} for name in plan.asked}
    return all(ids <= answered(folder, system, name).keys() for name, ids in wanted.items())


def _work(folder: Path, system: System, step: str, progress: Progress) -> None:
    """A fresh process to its end.

    Raises:
        UserError: what the process says that the user can put right.
    """
    command = [sys.executable, "-m", "unimoer.rag.worker", str(folder), system, step]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8")
        try:
            assert process.stdout is not None
            for line in process.stdout:
                progress.take(Event(**json.loads(line)))
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        said.seek(0)
        problem = said.read().strip()
    if code == 2:
        raise UserError(problem.splitlines()[-1])
    if code:
        raise RuntimeError(f"the process of {system} ended with {code}:\n{problem}")
