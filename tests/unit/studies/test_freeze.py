"""A plan is frozen at its first run: a later change is refused, or written down beside a decision of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from study_folder import arm_plan, losing
from unimoer.errors import UserError
from unimoer.schema import Declaration, Plan, write_record
from unimoer.schema.plan import Criterion
from unimoer.studies.freeze import decision_file, differences, freeze, read_plan
from unimoer.studies.planning import Planned
from unimoer.studies.run import write_results

Write = Callable[..., Path]


def changed(plan: Plan, **changes: object) -> Planned:
    return Planned((), plan.declared.model_copy(update=changes))


@pytest.fixture
def folder(write_study: Write) -> Path:
    return write_study(losing(3.0, 1.0), noise=0.1)


def test_the_same_plan_goes_on(folder: Path) -> None:
    plan = read_plan(folder)
    again = freeze(folder, "synthetic", changed(plan), "unimoer run kill-gate", amend=False)
    assert again.model_dump(exclude={"runs"}) == plan.model_dump(exclude={"runs"})
    other = freeze(folder, "synthetic", changed(plan), "unimoer run kill-gate --device cpu", amend=False)
    assert other.commands == ["unimoer run kill-gate", "unimoer run kill-gate --device cpu"]


def test_a_criterion_cannot_be_moved_in_silence(folder: Path) -> None:
    """What turned a PASS into a FAIL in three seconds."""
    write_results(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    moved = changed(read_plan(folder), criterion=Criterion(pass_at=7.0))
    with pytest.raises(UserError, match=r"frozen at 2026-.*changes criterion\.pass_at: 2\.0 -> 7\.0; choose") as caught:
        freeze(folder, "synthetic", moved, "unimoer run kill-gate --set criterion.pass_at=7", amend=False)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_amendment_has_a_decision_of_its_own_that_names_it(folder: Path) -> None:
    write_results(folder)
    first = (folder / "decision.json").read_bytes()
    moved = changed(read_plan(folder), criterion=Criterion(pass_at=7.0))
    plan = freeze(folder, "synthetic", moved, "again", amend=True)
    write_record(folder / "plan.json", plan)
    assert decision_file(plan) == "decision-2.json"
    _, written = write_results(folder)
    assert written == folder / "decision-2.json"
    assert (folder / "decision.json").read_bytes() == first
    [amendment] = read_plan(folder).amendments
    assert amendment.changes == ["criterion.pass_at: 2.0 -> 7.0"]
    assert amendment.time
    assert plan.frozen == read_plan(folder).frozen


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seeds": [1, 2, 3, 4]}, "seeds: [1, 2, 3] -> [1, 2, 3, 4]"),
        ({"budget": "total"}, "budget: per_task -> total"),
        ({"arms": {"": {"emb_only": arm_plan("emb_only")}}}, "arms..joint_single: removed"),
        ({"families": {"interference": ["embedding"]}}, "families.interference: "),
        ({"training": {":emb_only": "abc"}}, "training.:emb_only: added"),
        ({"checkpoints": [7]}, "checkpoints: [] -> [7]"),
    ],
    ids=str,
)
def test_whatever_a_verdict_could_be_bent_with_is_frozen(change: dict[str, object], line: str, folder: Path) -> None:
    plan = read_plan(folder)
    new: Declaration = plan.declared.model_copy(update=change)
    assert any(found.startswith(line) for found in differences(plan.declared, new)), list(
        differences(plan.declared, new)
    )
    with pytest.raises(UserError, match="frozen at"):
        freeze(folder, "synthetic", Planned((), new), "again", amend=False)


def test_a_folder_of_an_older_layout_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"name": "kill-gate", "seeds": [1], "arms": ["emb_only"], "runs": []}')
    with pytest.raises(UserError, match="written by another version of unimoer") as caught:
        read_plan(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"plan\.json: missing; this is not the folder of a study"):
        read_plan(tmp_path / "nowhere")
