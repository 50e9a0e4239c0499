"""The plan is frozen at its first run. What changes afterwards is refused, or written down as an amendment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from unimoer.config import RunSpec
from unimoer.errors import UserError
from unimoer.files import read_json
from unimoer.schema import Declaration, Plan, read_record
from unimoer.schema.base import Record
from unimoer.schema.plan import Amendment, PlannedRun
from unimoer.studies.planning import Planned, declaration_hash, hash_of

_SETTINGS = ("model", "data", "training", "budget", "custom_arms", "variants")
"""Parts of a configuration that decide what runs are trained."""


def freeze(
    folder: Path,
    name: str,
    planned: Planned,
    command: str,
    *,
    amend: bool,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a study folder: a new one, the frozen one, or the frozen one with an amendment.

    A plan of which no run has begun is not frozen yet. `settings` is the configuration as it is written beside the
    plan: a change is named by what it changes there, rather than by the hash of a run's settings.

    Raises:
        UserError: the folder's plan says something else, and `amend` is not set; nothing has been written then.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    declared, runs = planned.declared, [_planned(spec) for spec in planned.runs]
    if not (folder / "plan.json").exists() or not _has_begun(folder):
        return Plan(
            name=name, commands=[command], declared=declared, frozen=declaration_hash(declared), time=now, runs=runs
        )
    old, raw = _read(folder)
    changes = list(_differences("", raw["declared"], declared))
    changes = _in_words(changes, folder, settings)
    if changes and not amend:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise UserError(
            f"{folder / 'plan.json'}: frozen at {old.time}, and this command changes {changes[0]}{more}; choose "
            "another --output, or repeat it with --amend for a second decision that names the change"
        )
    first = old.first
    if changes and not old.amendments:
        first = old.declared
    return old.model_copy(
        update={
            "commands": old.commands if command in old.commands else [*old.commands, command],
            "declared": declared,
            "amendments": [*old.amendments, Amendment(time=now, changes=changes)] if changes else old.amendments,
            "first": first,
            # Of the same declaration, with fields that this version has added to it.
            "frozen": old.frozen if old.amendments and first is None else declaration_hash(first or declared),
            "runs": runs,
        }
    )


def read_plan(folder: Path) -> Plan:
    """Raises: UserError in one line for a folder without a plan, of an older layout, or with a plan that was edited."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan, and its file as it is: an older version declared fewer fields."""
    file = folder / "plan.json"
    if not file.is_file():
        raise UserError(f"{file}: missing; this is not the folder of a study")
    plan = read_record(Plan, file)
    raw = read_json(file)
    first = raw.get("first") or (None if plan.amendments else raw["declared"])
    if first is not None and hash_of(first) != plan.frozen:
        raise UserError(
            f"{file}: was changed after it was frozen at {plan.time}: what it declares does not have its hash; restore "
            "it, or change settings by the command with --amend"
        )
    return plan, raw


def _has_begun(folder: Path) -> bool:
    """Whether anything has been trained, scored or published under the plan."""
    signs = (
        "scores.json.gz",
        "results.json",
        "runs/*/training.json",
        "runs/*/checkpoints/*",
        "runs/*/eval/*/*/*/*/metrics.json",
    )
    return any(True for sign in signs for _ in folder.glob(sign))


def decision_file(plan: Plan) -> str:
    """Every amendment has a decision of its own: the first is never overwritten."""
    return "decision.json" if not plan.amendments else f"decision-{len(plan.amendments) + 1}.json"


def differences(old: Declaration, new: Declaration) -> Iterator[str]:
    """`criterion.pass_at: 2.0 -> 7.0`, one line for each field that differs."""
    yield from _differences("", old.model_dump(mode="json"), new)


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    """`old` is plain data. A field that an older version did not declare is no difference; an arm that it lacks is."""
    fields = type(new).model_fields if isinstance(new, Record) else None
    if isinstance(old, dict) and (fields is not None or isinstance(new, dict)):
        names = fields if fields is not None else new
        for key in sorted({*old, *names}):
            where = f"{path}.{key}" if path else str(key)
            if key not in old:
                if fields is None:
                    yield f"{where}: added"
            elif key not in names:
                yield f"{where}: removed"
            else:
                yield from _differences(where, old[key], getattr(new, key) if fields is not None else new[key])
    else:
        plain = json.loads(json.dumps(new, default=_plain))
        if old != plain:
            yield f"{path}: {_short(old)} -> {_short(plain)}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Record) else str(value)


def _in_words(changes: list[str], folder: Path, settings: Mapping[str, Any] | None) -> list[str]:
    """Hashes of settings that differ, replaced by the settings that do, where the earlier ones lie beside the plan."""
    hashes = [line for line in changes if line.startswith("training.")]
    if not hashes:
        return changes
    file = folder / "config.yaml"
    old = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    sections = {} if settings is None else {name: settings[name] for name in _SETTINGS if name in settings}
    found = [
        line
        for name, new in sections.items()
        if isinstance(old, dict) and name in old
        for line in _differences(name, old[name], new)
    ]
    others = [line for line in changes if line not in hashes]
    # Another base of the same name, or another precision, changes no setting.
    return [*found, *others, *([] if found else map(_arm_in_words, hashes))]


def _arm_in_words(line: str) -> str:
    """`training.d8:emb_only: a -> b`, without the empty name of a study's only variant."""
    return line.replace("training.:", "training.", 1)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _planned(spec: RunSpec) -> PlannedRun:
    return PlannedRun(arm=spec.arm, seed=spec.seed, folder=spec.folder, variant=spec.variant)
