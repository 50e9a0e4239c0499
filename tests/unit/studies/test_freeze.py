"""A plan is frozen at its first run: a later change is refused, or written down beside a decision of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from study_folder import arm_plan, losing
from unimoer.errors import UserError
from unimoer.files import read_json, write_json
from unimoer.schema import Decision, Declaration, Plan, read_record, write_record
from unimoer.schema.plan import Criterion
from unimoer.studies.freeze import decision_file, differences, freeze, read_plan
from unimoer.studies.planning import Planned, declaration_hash, hash_of
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
    # What was declared at first stays readable, and the new decision stands under its own declaration.
    assert plan.first is not None and plan.first.criterion.pass_at == 2.0
    second = read_record(Decision, folder / "decision-2.json")
    assert (second.frozen, second.time) == (declaration_hash(plan.declared), amendment.time)
    assert second.frozen != plan.frozen == declaration_hash(plan.first)


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


def test_a_plan_that_was_edited_is_refused(folder: Path) -> None:
    """A line moved in the file, and the next analysis would call it declared before the first run."""
    content = read_json(folder / "plan.json")
    content["declared"]["criterion"]["pass_at"] = -5.0
    write_json(folder / "plan.json", content)
    with pytest.raises(UserError, match=r"plan\.json: was changed after it was frozen at 2026-.*--amend"):
        write_results(folder)


def test_a_field_that_an_older_version_did_not_declare_is_no_change(folder: Path) -> None:
    """A study that was begun before an update goes on after it, and is frozen with what it declares now."""
    content = read_json(folder / "plan.json")
    new = changed(read_plan(folder))
    for collection in content["declared"]["suites"]["test"]["collections"].values():
        del collection["split_identifiers"]
    del content["declared"]["suites"]["test"]["first_stage_weight"]
    content["frozen"] = hash_of(content["declared"])
    write_json(folder / "plan.json", content)
    suite = new.declared.suites["test"]
    collections = {name: one.model_copy(update={"split_identifiers": True}) for name, one in suite.collections.items()}
    new = changed(read_plan(folder), suites={"test": suite.model_copy(update={"collections": collections})})
    plan = freeze(folder, "synthetic", new, "again", amend=False)
    assert plan.amendments == [] and plan.frozen == declaration_hash(new.declared)
    write_record(folder / "plan.json", plan)
    # Once it is declared, it is frozen.
    back = changed(read_plan(folder), suites={"test": suite})
    with pytest.raises(UserError, match=r"split_identifiers: True -> False"):
        freeze(folder, "synthetic", back, "again", amend=False)


def test_a_change_is_named_by_the_setting(folder: Path) -> None:
    """Not by the hash of a run's settings, which nobody can read."""
    plan = read_plan(folder)
    planned = changed(plan, training={":emb_only": "1"})
    write_record(folder / "plan.json", freeze(folder, "synthetic", planned, "again", amend=True))
    old = {"training": {"optimizer": {"lr": 0.003}, "embedding": {"steps": 4}}, "model": {"base": "a"}}
    write_json(folder / "config.yaml", old)
    new = {"training": {"optimizer": {"lr": 0.001}, "embedding": {"steps": 4}}, "model": {"base": "a"}}
    other = changed(plan, training={":emb_only": "2"})
    with pytest.raises(UserError, match=r"changes training\.optimizer\.lr: 0\.003 -> 0\.001; choose"):
        freeze(folder, "synthetic", other, "again", amend=False, settings=new)
    # Another base under the same name is no setting.
    with pytest.raises(UserError, match=r"changes training\.emb_only: 1 -> 2; choose"):
        freeze(folder, "synthetic", other, "again", amend=False, settings=old)


def test_a_plan_of_which_nothing_has_begun_is_not_frozen(folder: Path) -> None:
    """A run file that was wrong stopped it at its first reference; mended, it may begin."""
    (folder / "scores.json.gz").unlink()
    moved = changed(read_plan(folder), criterion=Criterion(pass_at=7.0))
    plan = freeze(folder, "synthetic", moved, "again", amend=False)
    assert plan.declared.criterion.pass_at == 7.0 and not plan.amendments and plan.commands == ["again"]
    (folder / "runs" / "emb_only-s1-abc" / "checkpoints" / "step-3").mkdir(parents=True)
    with pytest.raises(UserError, match="frozen at"):
        freeze(folder, "synthetic", moved, "again", amend=False)
