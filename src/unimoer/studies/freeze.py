"""The plan is frozen at its first run. What changes afterwards is refused, or written down as an amendment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unimoer.config import RunSpec
from unimoer.errors import UserError
from unimoer.schema import Declaration, Plan, read_record
from unimoer.schema.plan import Amendment, PlannedRun
from unimoer.studies.planning import Planned, declaration_hash


def freeze(folder: Path, name: str, planned: Planned, command: str, *, amend: bool) -> Plan:
    """The plan of a study folder: a new one, the frozen one, or the frozen one with an amendment.

    Raises:
        UserError: the folder's plan says something else, and `amend` is not set; nothing has been written then.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    runs = [_planned(spec) for spec in planned.runs]
    if not (folder / "plan.json").exists():
        return Plan(
            name=name,
            commands=[command],
            declared=planned.declared,
            frozen=declaration_hash(planned.declared),
            time=now,
            runs=runs,
        )
    old = read_plan(folder)
    changes = list(differences(old.declared, planned.declared))
    if changes and not amend:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise UserError(
            f"{folder / 'plan.json'}: frozen at {old.time}, and this command changes {changes[0]}{more}; choose "
            "another --output, or repeat it with --amend for a second decision that names the change"
        )
    commands = old.commands if command in old.commands else [*old.commands, command]
    amendments = [*old.amendments, Amendment(time=now, changes=changes)] if changes else old.amendments
    update = {"commands": commands, "declared": planned.declared, "amendments": amendments, "runs": runs}
    return old.model_copy(update=update)


def read_plan(folder: Path) -> Plan:
    """Raises: UserError in one line for a folder without a plan, or of an older layout."""
    file = folder / "plan.json"
    if not file.is_file():
        raise UserError(f"{file}: missing; this is not the folder of a study")
    return read_record(Plan, file)


def decision_file(plan: Plan) -> str:
    """Every amendment has a decision of its own: the first is never overwritten."""
    return "decision.json" if not plan.amendments else f"decision-{len(plan.amendments) + 1}.json"


def differences(old: Declaration, new: Declaration) -> Iterator[str]:
    """`criterion.pass_at: 2.0 -> 7.0`, one line for each field that differs."""
    yield from _differences("", old.model_dump(mode="json"), new.model_dump(mode="json"))


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            where = f"{path}.{key}" if path else str(key)
            if key not in old:
                yield f"{where}: added"
            elif key not in new:
                yield f"{where}: removed"
            else:
                yield from _differences(where, old[key], new[key])
    elif old != new:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _planned(spec: RunSpec) -> PlannedRun:
    return PlannedRun(arm=spec.arm, seed=spec.seed, folder=spec.folder, variant=spec.variant)
