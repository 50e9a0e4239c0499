"""`unimoer evaluate`: a checkpoint on data of the user's choice, beside BM25, a random order and its untrained base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import CollectionConfig, DataConfig, DomainConfig, RunSpec, SuiteConfig
from unimoer.data.prepare import prepare
from unimoer.data.trec import read_trec
from unimoer.errors import UserError
from unimoer.files import read_json
from unimoer.model.identity import base_identity
from unimoer.runs import execute, ignore, read_spec
from unimoer.runs.checkpoint import evaluate_checkpoint, suite_of
from unimoer.runs.folder import write_spec
from unimoer.runs.identity import model_identity
from unimoer.schema import EvaluationSummary
from unimoer.types import Task

COMMON = SuiteConfig(rerank_depth=8)
SYSTEMS = {"bm25", "random", "untrained"}


def evaluated(run: Path, suite: SuiteConfig, **options: Any) -> list[EvaluationSummary]:
    defaults: dict[str, Any] = {"tasks": None, "output": None}
    return evaluate_checkpoint(run, suite, **(defaults | options), device=tiny.CPU, watch=ignore)


def test_evaluating_a_run_again_gives_its_own_numbers(joint: Path, tmp_path: Path) -> None:
    """On its own suite, as a file on disk has them."""
    found = evaluated(joint, suite_of(joint, None, None, COMMON), output=tmp_path)
    assert [(one.dataset, one.task) for one in found] == sorted(
        (dataset, task) for dataset in tiny.THINGS for task in Task for _ in range(4)
    )
    assert {one.arm for one in found} == SYSTEMS | {"joint_single"}
    [first] = (joint / "eval").iterdir()
    for one in found:
        [file] = tmp_path.glob(f"{one.arm}/eval/extra-*/final/{one.dataset}/{one.task}/metrics.json")
        assert read_json(file)["metrics"] == one.metrics
        if one.arm == "joint_single":
            assert read_json(first / "final" / one.dataset / one.task / "metrics.json")["metrics"] == one.metrics


def test_on_data_of_ones_own(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    """A second call reads what is there; without `output` all lies below the run, which stays what it is."""
    run = shutil.copytree(joint, tmp_path / "run")
    suite = suite_of(run, [str(data["garden"])], None, COMMON)
    found = evaluated(run, suite, tasks=(Task.EMBEDDING,))
    assert {(one.dataset, one.task, one.arm, one.queries) for one in found} == {
        ("garden", Task.EMBEDDING, arm, 15) for arm in SYSTEMS | {"joint_single"}
    }
    written = {path: path.stat().st_mtime_ns for path in (run / "extra").rglob("metrics.json")}
    assert len(written) == 4
    assert evaluated(run, suite, tasks=(Task.EMBEDDING,)) == found
    assert {path: path.stat().st_mtime_ns for path in (run / "extra").rglob("metrics.json")} == written
    assert {path.name for path in run.iterdir()} == {path.name for path in joint.iterdir()} | {"extra"}


def test_its_rankings_as_files_to_mine_and_rerank_from(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    """Of the checkpoint alone, for queries of any split."""
    suite = suite_of(joint, [str(data["garden"])], None, SuiteConfig(split="train", rerank_depth=4))
    found = evaluated(joint, suite, output=tmp_path / "scores", trec=tmp_path / "ranked", references=False)
    assert {one.arm for one in found} == {"joint_single"}
    lists = {task: read_trec(tmp_path / "ranked" / task / "garden.trec") for task in Task}
    assert all(len(queries) == 60 for queries in lists.values())
    assert {len(documents) for documents in lists[Task.EMBEDDING].values()} == {30}
    assert {len(documents) for documents in lists[Task.RERANKING].values()} == {4}
    domain = DomainConfig(
        source=str(data["garden"]), negatives_run=str(tmp_path / "ranked" / "embedding" / "garden.trec")
    )
    mined = prepare(DataConfig(domains={"garden": domain}))["garden"].examples[0]
    own = lists[Task.EMBEDDING][mined.query_id]
    assert mined.negative_ids[0] == max(own.keys() - set(mined.positive_ids), key=own.__getitem__)


def test_all_systems_rerank_the_same_candidates(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    evaluated(joint, suite_of(joint, [str(data["kitchen"])], None, COMMON), output=tmp_path, tasks=(Task.RERANKING,))
    lists = set()
    files = list(tmp_path.glob("*/eval/*/final/kitchen/reranking/run.trec"))
    assert len(files) == 4
    for file in files:
        rows = [line.split() for line in file.read_text().splitlines()]
        lists.add(frozenset((row[0], row[2]) for row in rows))
    assert len(lists) == 1


def test_the_untrained_base_is_the_one_that_the_run_began_with(
    joint: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    """A learned score head starts at random: with another seed it would be another reference."""
    suite = suite_of(joint, [str(data["kitchen"])], None, COMMON)
    alone = shutil.copytree(joint / "checkpoints" / "final", tmp_path / "alone")
    scores = []
    # Of a run with seed 1, and of nobody knows what: seed 0.
    for run in (joint, alone):
        evaluated(run, suite, output=tmp_path / run.name, tasks=(Task.RERANKING,))
        [file] = (tmp_path / run.name / "untrained").glob("eval/*/final/kitchen/reranking/run.trec")
        scores.append([line.split()[4] for line in file.read_text().splitlines()])
    assert scores[0] != scores[1]
    spec = read_spec(joint)
    assert spec is not None and spec.model is None and spec.train is not None
    identity = model_identity(base_identity(spec.train.model), spec.train.model, tiny.CPU)
    changes = {"arm": "untrained", "train": None, "model": spec.train.model, "identity": identity}
    reference = spec.model_copy(update=changes)
    execute(reference, tmp_path / "reference")
    [file] = (tmp_path / "reference").glob("eval/*/final/kitchen/reranking/run.trec")
    expected = {tuple(line.split()[0:3:2]): line.split()[4] for line in file.read_text().splitlines()}
    [file] = (tmp_path / joint.name / "untrained").glob("eval/*/final/kitchen/reranking/run.trec")
    found = {tuple(line.split()[0:3:2]): line.split()[4] for line in file.read_text().splitlines()}
    both = expected.keys() & found.keys()
    assert both
    assert {key: found[key] for key in both} == {key: expected[key] for key in both}


def test_a_checkpoint_in_no_run_folder(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    alone = shutil.copytree(joint / "checkpoints" / "final", tmp_path / "alone")
    with pytest.raises(UserError, match=r"alone: no config\.yaml to take collections from; name them with --data or"):
        suite_of(alone, None, None, COMMON)
    found = evaluated(alone, suite_of(alone, [str(data["kitchen"])], None, COMMON), tasks=(Task.EMBEDDING,))
    assert {one.arm for one in found} == SYSTEMS | {"trained"}
    assert (alone / "extra" / "suite.json").is_file()


@pytest.mark.parametrize("arm", ["rank_only", "emb_only"])
def test_a_task_that_was_not_trained_is_refused(arm: str, spec: Any, data: dict[str, Path], tmp_path: Path) -> None:
    """What an adapter for one task does to the other is no result."""
    one: RunSpec = spec(arm, training__embedding__steps=1, training__reranking__steps=1)
    execute(one, tmp_path / "run")
    [trained] = one.tasks
    [other] = (task for task in Task if task is not trained)
    suite = suite_of(tmp_path / "run", [str(data["kitchen"])], None, COMMON)
    for run in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "final"):
        with pytest.raises(UserError) as caught:
            evaluated(run, suite, tasks=tuple(Task))
        assert str(caught.value) == f"{run}: was not trained for {other}; leave --task out, or name {trained}"
    assert not (tmp_path / "run" / "extra").exists()
    assert {found.task for found in evaluated(tmp_path / "run", suite)} == {trained}


def test_which_suite_is_meant(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data and --suite: name collections or a suite, not both"):
        suite_of(joint, ["embedded:cwe"], "embedded", COMMON)
    other = shutil.copytree(data["garden"], tmp_path / "elsewhere" / "kitchen")
    with pytest.raises(UserError, match="--data: two sources are named 'kitchen', and results of one would replace"):
        suite_of(joint, [str(data["kitchen"]), f"{other}/"], None, COMMON)
    assert suite_of(joint, None, "embedded", COMMON).collections == "embedded"
    named = suite_of(joint, ["embedded:cwe", "hf:mteb/scifact"], None, COMMON).collections
    assert named == {
        "cwe": CollectionConfig(source="embedded:cwe"),
        "scifact": CollectionConfig(source="hf:mteb/scifact"),
    }
    own = suite_of(joint, None, None, COMMON)
    assert (own.queries, own.rerank_depth) == (8, 8)
    assert suite_of(joint, None, None, COMMON.model_copy(update={"queries": 3})).queries == 3


def test_a_folder_of_folders_is_a_suite(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    suite = suite_of(joint, None, str(data["kitchen"].parent), COMMON.model_copy(update={"queries": 4}))
    found = evaluated(joint, suite, tasks=(Task.EMBEDDING,), output=tmp_path)
    assert {(one.dataset, one.queries) for one in found} == {("kitchen", 4), ("garden", 4)}


def test_a_source_brings_the_settings_that_its_suite_has(joint: Path, tmp_path: Path) -> None:
    """Without them BM25 reads source code as whole words, and every model beside it looks good."""
    found = suite_of(joint, ["embedded:code", "embedded:cwe"], None, COMMON).collections
    assert isinstance(found, dict)
    assert {name: one.split_identifiers for name, one in found.items()} == {"code": True, "cwe": False}
    own = suite_of(joint, ["folder"], None, COMMON, split_identifiers=True).collections
    assert isinstance(own, dict) and own["folder"].split_identifiers
    with pytest.raises(UserError, match="--split-identifiers: goes with --data"):
        suite_of(joint, None, None, COMMON, split_identifiers=True)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:ORG/NAME#CONFIG", "NAME-CONFIG"),
        ("ir:beir/nq/test", "test"),
        ("embedded:cwe", "cwe"),
        ("my data", "my-data"),
        (".", "here it is"),
    ],
)
def test_every_source_has_a_name_that_a_folder_may_have(
    source: str, name: str, joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here it is").mkdir()
    monkeypatch.chdir(tmp_path / "here it is")
    found = suite_of(joint.resolve(), [source], None, COMMON)
    assert isinstance(found.collections, dict)
    assert list(found.collections) == [name.replace(" ", "-")]
    SuiteConfig.model_validate(found.model_dump())


def test_options_win_over_what_a_collection_says_itself(joint: Path, tmp_path: Path) -> None:
    run = shutil.copytree(joint, tmp_path / "run")
    spec = read_spec(run)
    assert spec is not None
    suite = spec.suites[0].suite
    assert isinstance(suite.collections, dict)
    own = {name: one.model_copy(update={"queries": 7, "split": "dev"}) for name, one in suite.collections.items()}
    changed = spec.suites[0].model_copy(update={"suite": suite.model_copy(update={"collections": own})})
    write_spec(run, spec.model_copy(update={"suites": (changed,)}))
    plain = suite_of(run, None, None, SuiteConfig())
    asked = suite_of(run, None, None, SuiteConfig(queries=3, split="test"))
    assert isinstance(plain.collections, dict) and isinstance(asked.collections, dict)
    assert {(one.queries, one.split) for one in plain.collections.values()} == {(7, "dev")}
    assert {(one.queries, one.split) for one in asked.collections.values()} == {(3, "test")}
