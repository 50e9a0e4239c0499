"""One run from wherever it stands: begun, killed in between, done, of other settings, diverged."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from unimoer.config import BM25, RANDOM, UNTRAINED, RunSpec
from unimoer.errors import UserError
from unimoer.files import read_json
from unimoer.model.checkpoint import load_model
from unimoer.runs import Event, execute, is_done
from unimoer.runs.folder import expected
from unimoer.studies import find_study
from unimoer.studies.planning import plan_study
from unimoer.studies.run import workload

Make = Callable[..., dict[str, Any]]
Spec = Callable[..., RunSpec]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def unfinish(folder: Path) -> None:
    """As a kill before the last line of a run leaves it."""
    status = folder / "status.json"
    status.write_text(json.dumps({**read_json(status), "state": "running"}))


def units(events: list[Event], kind: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for event in events:
        if event.kind == kind:
            found[event.work] += event.units
    return {work: count for work, count in found.items() if count}


def test_a_run_says_what_it_does(spec: Spec, tmp_path: Path) -> None:
    """The events of a run add up to the workload that was planned, and so do those of two halves."""
    events: list[Event] = []
    one = spec("joint_single")
    execute(one, tmp_path / "run", events.append)
    planned = {"train embedding": 6, "train reranking": 6, "evaluate embedding": 2, "evaluate reranking": 2}
    assert workload([one]) == units(events, "spent") == planned
    assert units(events, "skip") == {}
    assert all(event.seconds > 0 for event in events if event.kind == "spent")
    said = [event for event in events if event.kind == "say"]
    assert {event.text for event in said} >= {
        "joint_single seed 1",
        "joint_single seed 1: training",
        "joint_single seed 1: reranking on garden",
    }
    assert sum(event.detail.startswith("step 12/12 reranking loss ") for event in said) == 1
    events.clear()
    unfinish(tmp_path / "run")
    [suite] = (tmp_path / "run" / "eval").iterdir()
    shutil.rmtree(suite / "final" / "garden" / "reranking")
    execute(one, tmp_path / "run", events.append)
    assert units(events, "spent") == {"evaluate reranking": 1}
    assert units(events, "skip") == planned | {"evaluate reranking": 1}


def test_a_run_goes_on_from_its_last_checkpoint(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it skips and what it does are the whole, and it ends in the same bytes."""
    one = spec("joint_single", training__checkpoint_every=5)
    execute(one, tmp_path / "whole")
    module, events = import_module("unimoer.runs.execute"), list[Event]()

    class Stopping(module._Steps):  # type: ignore[name-defined,misc]
        def __call__(self, step: int, *rest: Any) -> None:
            super().__call__(step, *rest)
            if step == 8:
                raise tiny.InterruptedRunError

    with monkeypatch.context() as patch:
        patch.setattr(module, "_Steps", Stopping)
        with pytest.raises(tiny.InterruptedRunError):
            execute(one, tmp_path / "run", events.append)
    assert read_json(tmp_path / "run" / "status.json")["state"] == "running"
    assert sum(units(events, "spent").values()) == 8
    events.clear()
    execute(one, tmp_path / "run", events.append)
    done, skipped = units(events, "spent"), units(events, "skip")
    assert sum(skipped.values()) == 5
    assert {work: done[work] + skipped.get(work, 0) for work in done} == workload([one])
    assert is_done(tmp_path / "run", one)
    for side in ("adapter.safetensors", "unimoer.json"):
        first, second = (tmp_path / name / "checkpoints" / "final" / side for name in ("whole", "run"))
        assert first.read_bytes() == second.read_bytes()
    steps = [line["step"] for line in tiny.lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(1, 13)), "no step is logged twice"


@pytest.mark.parametrize("arm", [BM25, RANDOM, UNTRAINED])
def test_a_reference_trains_nothing(arm: str, experiment: Make, tmp_path: Path) -> None:
    runs = plan_study(tiny.parsed(experiment()), "kill-gate", {}, tiny.CPU).runs
    one = next(run for run in runs if run.arm == arm)
    execute(one, tmp_path / "run")
    assert is_done(tmp_path / "run", one)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", "config.yaml", "env.json", "status.json", "eval"}
    assert len(list(expected(tmp_path / "run", one))) == 4


@pytest.mark.parametrize(("arm", "task"), [("emb_only", "embedding"), ("rank_only", "reranking")])
def test_training_beats_the_untrained_base(arm: str, task: str, spec: Spec, experiment: Make, tmp_path: Path) -> None:
    """The whole path learns: data, batches, losses, optimizer, checkpoint, prompts, search, metrics.

    The base is random and has 32 dimensions, so it does not learn much.
    """
    changes: dict[str, Any] = {
        "training__embedding": {"steps": 60, "batch_size": 24},
        "training__reranking": {"steps": 60, "batch_size": 8, "negatives": 3, "random_until": 0.6},
    }
    runs = plan_study(tiny.parsed(experiment(**changes)), "kill-gate", {}, tiny.CPU).runs
    untrained = next(run for run in runs if run.arm == UNTRAINED)
    means = []
    for name, one in (("untrained", untrained), ("trained", spec(arm, **changes))):
        execute(one, tmp_path / name)
        found = [wanted for wanted in expected(tmp_path / name, one) if wanted.measure == task]
        means.append(sum(read_json(w.folder / "metrics.json")["metrics"]["ndcg@10"] for w in found) / len(found))
    assert means[1] - means[0] > 0.1


def test_a_run_folder_of_another_run_is_refused(spec: Spec, tmp_path: Path) -> None:
    """`--output` names the folder, so the key in a folder's name cannot tell them apart."""
    execute(spec(), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    other = spec(training__optimizer__lr=0.5)
    with pytest.raises(UserError, match="run: holds a run of other settings or data; choose another --output, or"):
        execute(other, tmp_path / "run")
    assert snapshot(tmp_path / "run") == before


def test_a_half_trained_run_of_other_settings_is_not_continued(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss is"):
        execute(spec(training__optimizer__lr=1e30, training__checkpoint_every=1), tmp_path / "run")
    with pytest.raises(UserError, match="other settings"):
        execute(spec(), tmp_path / "run")


def test_a_folder_that_holds_something_else_is_not_taken_for_done(spec: Spec, tmp_path: Path) -> None:
    """Other settings of the same arm have evaluations elsewhere, and a finished state is not enough."""
    one = spec()
    execute(one, tmp_path / "run")
    assert is_done(tmp_path / "run", one)
    assert not is_done(tmp_path / "run", spec(training__optimizer__lr=0.5))
    assert not is_done(tmp_path / "run", spec(evaluation__suites__test__rerank_depth=4))
    unfinish(tmp_path / "run")
    assert not is_done(tmp_path / "run", one)


def test_leftover_checkpoints_go_when_the_final_one_is_there(spec: Spec, tmp_path: Path) -> None:
    """A kill between the two leaves them, and half of whatever was being written."""
    one = spec()
    execute(one, tmp_path / "run")
    unfinish(tmp_path / "run")
    for leftover in ("step-4", ".step-6.k1lled.tmp", ".final.k1lled.tmp", ".at-3.k1lled.tmp"):
        (tmp_path / "run" / "checkpoints" / leftover).mkdir()
    execute(one, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["final"]


def test_what_is_evaluated_is_not_evaluated_again(spec: Spec, tmp_path: Path) -> None:
    one = spec()
    execute(one, tmp_path / "run")
    first = read_json(tmp_path / "run" / "status.json")["eval_seconds"]
    unfinish(tmp_path / "run")
    [suite] = (tmp_path / "run" / "eval").iterdir()
    shutil.rmtree(suite / "final" / "garden")
    before = snapshot(tmp_path / "run" / "eval")
    execute(one, tmp_path / "run")
    after = snapshot(tmp_path / "run" / "eval")
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    assert read_json(tmp_path / "run" / "status.json")["eval_seconds"] > first > 0, "the time of both calls"


def test_a_similarity_arm_ends_with_pilots(spec: Spec, tmp_path: Path) -> None:
    """Fitted after training, saved with the model, and used in its evaluation."""
    arm = {"experts": {"embedding": 1, "reranking": 1}, "router": {"type": "similarity", "pilot_queries": 8}}
    one = spec("mine", custom_arms={"mine": arm}, training__probe__every=0)
    execute(one, tmp_path / "run")
    model = load_model(tmp_path / "run" / "checkpoints" / "final", tiny.CPU)
    assert model.pilots is not None
    # Of each domain: queries, documents and pairs, by whichever expert did better.
    assert 6 <= len(model.pilots.owners) <= 12
    assert model.pilots.vectors.shape == (len(model.pilots.owners), 32)


def test_a_run_says_how_far_its_routers_moved(spec: Spec, tmp_path: Path) -> None:
    """A learned router that stayed where it began has learned nothing; its null moves by nothing at all."""
    moved = {}
    for arm in ("joint_moe", "joint_moe_start", "joint_single"):
        execute(spec(arm, model__adapter={"rank": 12, "alpha": 24.0}), tmp_path / arm)
        moved[arm] = read_json(tmp_path / arm / "status.json")["training"]["router_moved"]
    assert moved["joint_moe"] > 0
    assert moved["joint_moe_start"] == 0
    assert moved["joint_single"] is None


def test_a_diverged_run_stops_with_one_line_and_makes_no_final(spec: Spec, tmp_path: Path) -> None:
    one = spec(training__optimizer__lr=1e30)
    with pytest.raises(UserError, match=r"loss is (nan|inf|-inf) at step") as caught:
        execute(one, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not is_done(tmp_path / "run", one)
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()


def test_a_run_that_diverges_at_its_last_step_is_not_saved_as_a_result(spec: Spec, tmp_path: Path) -> None:
    """The only loss was a number; what the step made of the weights is not."""
    optimizer = {"lr": 1e30, "warmup_ratio": 0.0}
    with pytest.raises(UserError) as caught:
        execute(spec(training__optimizer=optimizer, training__reranking__steps=1), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()


def test_a_run_depends_on_no_run_before_it(spec: Spec, tmp_path: Path) -> None:
    """In one process after another one, or alone: the same bytes."""
    execute(spec(), tmp_path / "first")
    torch.manual_seed(12345)
    execute(spec("emb_only"), tmp_path / "between")
    execute(spec(), tmp_path / "second")
    first, second = (tmp_path / name / "checkpoints/final/adapter.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_references_are_the_same_in_every_study(experiment: Make) -> None:
    """BM25 and a random order depend on the suite alone: their folders have the same names."""
    found = []
    for lr in (1e-2, 1e-3):
        config = find_study("kill-gate").prepare(tiny.parsed(experiment(training__optimizer__lr=lr)))
        runs = plan_study(config, "kill-gate", {}, tiny.CPU).runs
        found.append({run.folder for run in runs if run.arm in (BM25, RANDOM)})
    assert found[0] == found[1]
