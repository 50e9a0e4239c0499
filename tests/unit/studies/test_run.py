"""Whole studies in this process: skipping, continuing, amending, refusing, and what lies on disk afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import RunSpec
from unimoer.data.trec import read_trec
from unimoer.errors import UserError
from unimoer.evaluation import evaluate as evaluation
from unimoer.evaluation import first_stage
from unimoer.evaluation.first_stage import bm25_run
from unimoer.evaluation.fusion import combine
from unimoer.evaluation.rerank import cut
from unimoer.files import read_json
from unimoer.runs import evaluate as run_evaluate
from unimoer.runs import is_done, read_spec
from unimoer.runs.data import lacking, suite_data
from unimoer.runs.folder import expected
from unimoer.studies import find_study
from unimoer.studies.planning import plan_study
from unimoer.studies.run import workload, write_results
from unimoer.types import Task

Make = Callable[..., dict[str, Any]]
FILES = {"run.trec", "per_query.jsonl", "metrics.json"}
run = tiny.run_study


def specs(content: dict[str, Any]) -> tuple[RunSpec, ...]:
    return plan_study(find_study("kill-gate").prepare(tiny.parsed(content)), "kill-gate", {}, tiny.CPU).runs


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: a file that was written again has another."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def trained_files(folder: Path) -> dict[str, tuple[int, int]]:
    """What training leaves: logs, summaries, weights."""
    return {name: found for name, found in snapshot(folder).items() if "/eval/" not in name and _trained(name)}


def _trained(name: str) -> bool:
    return "checkpoints" in name or Path(name).name in ("metrics.jsonl", "gradient_conflicts.jsonl", "training.json")


def folder_of(study: Path, arm: str, seed: int = 1) -> Path:
    [found] = (study / "runs").glob(f"{arm}-s{seed}-*")
    return found


def scores(run: Path, *path: str, suite: str = "test", moment: str = "final") -> Path:
    """A file below the evaluation of a suite, whose folder ends in its key."""
    [root] = (run / "eval").glob(f"{suite}-????????")
    return root.joinpath(moment, *path)


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever trains now is a mistake."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it trains again")

    # By its name: in the package, `execute` is the function.
    monkeypatch.setattr(import_module("unimoer.runs.execute"), "train", refuse)


def test_every_run_leaves_what_the_design_names(finished: Path, experiment: Make) -> None:
    assert {path.name for path in finished.iterdir()} == {
        ".lock",
        "plan.json",
        "config.yaml",
        "results.json",
        "scores.json.gz",
        "decision.json",
        "runs",
    }
    planned = specs(experiment())
    assert {path.name for path in (finished / "runs").iterdir()} == {spec.folder for spec in planned}
    for spec in planned:
        folder = finished / "runs" / spec.folder
        assert is_done(folder, spec)
        expected = {".lock", "config.yaml", "env.json", "status.json", "eval"}
        if spec.train is not None:
            expected |= {"metrics.jsonl", "checkpoints", "training.json"}
        if spec.arm == "joint_single":
            expected.add("gradient_conflicts.jsonl")
        assert {path.name for path in folder.iterdir()} == expected
        assert [path.name for path in scores(folder).parent.iterdir()] == ["final"]
        for domain in tiny.THINGS:
            assert {path.name for path in scores(folder, domain).iterdir()} == {task.value for task in spec.tasks}
            for task in spec.tasks:
                found = scores(folder, domain, task.value)
                assert {path.name for path in found.iterdir()} == FILES
                assert len(tiny.lines(found / "per_query.jsonl")) == 8
        assert read_spec(folder) == spec
        assert read_json(folder / "env.json")["key"] == spec.key
        if spec.train is not None:
            assert [path.name for path in (folder / "checkpoints").iterdir()] == ["final"]
            status = read_json(folder / "status.json")
            assert status["training"] == read_json(folder / "training.json")
            served = {key: value for key, value in status["serving"].items() if value is not None}
            assert {f"{task.value}_ms" for task in spec.tasks} == {key for key in served if key.endswith("_ms")}
            assert all(value > 0 for value in served.values())


def test_candidates_and_ceilings_are_the_same_for_every_arm(finished: Path) -> None:
    """And a reranking run lists its candidates and nothing else."""
    for domain in tiny.THINGS:
        lists, ceilings = set(), set()
        files = list(finished.glob(f"runs/*/eval/*/final/{domain}/reranking/run.trec"))
        assert len(files) == 5
        for trec in files:
            rows = [line.split() for line in trec.read_text().splitlines()]
            lists.add(frozenset((row[0], row[2]) for row in rows))
            ceilings.add(json.dumps(read_json(trec.with_name("metrics.json"))["ceiling"], sort_keys=True))
        assert len(lists) == len(ceilings) == 1
        [listed] = lists
        assert len(listed) == 8 * 8


def test_no_file_of_a_study_is_a_pickle(finished: Path) -> None:
    """Pickles of protocol 2 and later start with 0x80; torch.save writes zip archives of them."""
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {".safetensors", ".json", ".jsonl", ".yaml", ".trec", ".gz"} <= {path.suffix for path in files}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK\x03\x04")), path


def test_a_finished_study_is_skipped(copy: Path, experiment: Make, untrainable: None) -> None:
    before, decision = snapshot(copy / "runs"), (copy / "decision.json").read_bytes()
    printed = run(experiment(), copy)
    assert "6 of 6 runs are already done" in printed
    assert snapshot(copy / "runs") == before
    assert (copy / "decision.json").read_bytes() == decision


def test_a_result_is_a_function_of_the_configuration(finished: Path, experiment: Make, tmp_path: Path) -> None:
    run(experiment(), tmp_path / "again")
    first, second = (read_json(folder / "decision.json") for folder in (finished, tmp_path / "again"))
    # When it was declared is no result.
    assert first | {"time": ""} == second | {"time": ""}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"evaluation__suites__more": {"queries": 5, "rerank_depth": 4}}, "more"),
        ({"evaluation__suites__test__rerank_depth": 4}, "test"),
    ],
    ids=["another suite", "another depth"],
)
def test_what_is_evaluated_beside_is_evaluated_and_nothing_is_trained_again(
    changes: dict[str, Any], again: str, copy: Path, experiment: Make, untrainable: None
) -> None:
    content = experiment(**changes)
    suites = content["evaluation"]["suites"]
    if again == "more":
        suites["more"]["collections"] = suites["test"]["collections"]
    before, weights = snapshot(copy / "runs"), trained_files(copy / "runs")
    assert any(name.endswith("adapter.safetensors") for name in weights)
    assert any(name.endswith("metrics.jsonl") for name in weights)
    with pytest.raises(UserError, match=r"frozen at .* this command changes suites\."):
        run(content, copy)
    assert snapshot(copy / "runs") == before
    run(content, copy, amend=True)
    after = snapshot(copy / "runs")
    assert trained_files(copy / "runs") == weights
    # Old scores stay, untouched; what is new is evaluations of the suite that was asked for.
    assert {name: found for name, found in after.items() if "/eval/" in name and name in before} == {
        name: found for name, found in before.items() if "/eval/" in name
    }
    new = after.keys() - before.keys()
    assert new
    assert {name.split("/")[2].rpartition("-")[0] for name in new if name.split("/")[1] == "eval"} == {again}
    assert all(name.split("/")[1] == "eval" for name in new)
    for spec in specs(content):
        assert is_done(copy / "runs" / spec.folder, spec)
    # A second decision, which names the change; the first is never overwritten.
    assert read_json(copy / "decision-2.json")["amendments"]
    assert not read_json(copy / "decision.json")["amendments"]
    if again == "more":
        assert read_json(copy / "results.json")["other_suites"].keys() == {"more"}


def test_another_seed_is_added_to_what_is_done(copy: Path, experiment: Make) -> None:
    before, first = snapshot(copy / "runs"), (copy / "decision.json").read_bytes()
    with pytest.raises(UserError, match=r"changes seeds: \[1\] -> \[1, 2\]; choose another --output, or .* --amend"):
        run(experiment(seeds=[1, 2]), copy)
    printed = run(experiment(seeds=[1, 2]), copy, amend=True)
    assert "6 of 10 runs are already done" in printed
    after = snapshot(copy / "runs")
    assert {name: after[name] for name in before} == before
    assert len(list((copy / "runs").iterdir())) == 10
    assert (copy / "decision.json").read_bytes() == first
    decision = read_json(copy / "decision-2.json")
    assert decision["tasks"]["embedding"]["tir"]["per_seed"].keys() == {"1", "2"}


def test_a_frozen_criterion_is_not_moved(copy: Path, experiment: Make) -> None:
    before = snapshot(copy)
    with pytest.raises(UserError, match=r"criterion\.pass_at: 2\.0 -> 9\.0") as caught:
        run(experiment(criterion={"pass_at": 9.0}), copy)
    assert "\n" not in str(caught.value)
    assert snapshot(copy) == before


def test_another_study_in_the_same_folder_is_refused(copy: Path, experiment: Make) -> None:
    content = experiment(training__embedding__steps=6, arms=["emb_only", "rank_only", "joint_single"])
    with pytest.raises(UserError, match="this command changes families"):
        run(content, copy, study="budget")


def test_an_amended_study_that_stops_has_only_the_verdict_of_the_first_plan(
    copy: Path, experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise tiny.InterruptedRunError

    first = (copy / "decision.json").read_bytes()
    monkeypatch.setattr("unimoer.executors.local.execute", stop)
    with pytest.raises(tiny.InterruptedRunError):
        run(experiment(seeds=[1, 2]), copy, amend=True)
    assert (copy / "decision.json").read_bytes() == first
    assert not (copy / "decision-2.json").exists()
    # Nor can one be made from the files of a plan that is half done.
    with pytest.raises(UserError, match=r"status\.json: missing; repeat the command that started the study"):
        write_results(copy)
    monkeypatch.undo()
    run(experiment(seeds=[1, 2]), copy)
    assert read_json(copy / "plan.json")["amendments"] == read_json(copy / "decision-2.json")["amendments"]


def test_results_are_a_function_of_the_files(copy: Path) -> None:
    before = {name: (copy / name).read_bytes() for name in ("decision.json", "results.json", "scores.json.gz")}
    for name in before:
        (copy / name).unlink()
    write_results(copy)
    assert {name: (copy / name).read_bytes() for name in before} == before


def test_published_scores_give_the_same_decision(copy: Path) -> None:
    """Without runs, from `scores.json.gz`, whose numbers have six digits."""
    before = read_json(copy / "decision.json")
    (copy / "decision.json").unlink()
    shutil.rmtree(copy / "runs")
    write_results(copy)
    after = read_json(copy / "decision.json")
    for part in ("verdict", "supported", "useful", "criterion", "frozen", "time", "method"):
        assert after[part] == before[part]
    for task in ("embedding", "reranking"):
        for part in ("specialist", "joint", "untrained"):
            assert after["tasks"][task][part]["mean"] == pytest.approx(before["tasks"][task][part]["mean"], abs=1e-6)
        assert after["tasks"][task]["tir"]["ci95"] == pytest.approx(before["tasks"][task]["tir"]["ci95"], abs=1e-3)


def test_training_data_that_changed_are_another_study(
    experiment: Make, data: dict[str, Path], copy: Path, tmp_path: Path
) -> None:
    """The configuration names a folder, not what is in it; not even an amendment mixes both."""
    moving = shutil.copytree(data["kitchen"], tmp_path / "kitchen")
    content = experiment(data__domains={"kitchen": {"source": str(moving)}})
    before = {spec.folder for spec in specs(content) if spec.train is not None}
    run(content, tmp_path / "study")
    corpus = moving / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("kettle", "teapot"))
    forget()
    with pytest.raises(UserError, match=r"changes domains\.kitchen\.fingerprint"):
        run(content, tmp_path / "study")
    run(content, tmp_path / "study", amend=True)
    after = {spec.folder for spec in specs(content) if spec.train is not None}
    assert not before & after
    assert before | after <= {path.name for path in (tmp_path / "study" / "runs").iterdir()}


def forget() -> None:
    """What this process has loaded, as a new one would."""
    from unimoer.runs import data

    for cached in (data._training_data, data._suite_data, data._bm25, data._candidates):
        cached.cache_clear()


def test_a_run_folder_of_another_run_is_refused(copy: Path, experiment: Make) -> None:
    """As when somebody has copied folders about."""
    folder = folder_of(copy, "joint_single")
    shutil.rmtree(folder)
    shutil.copytree(folder_of(copy, "rank_only"), folder)
    before = snapshot(copy / "runs")
    (folder / "status.json").unlink()
    with pytest.raises(UserError, match=f"{folder.name}: holds a run of other settings or data; choose another"):
        run(experiment(), copy)
    assert snapshot(copy / "runs") == {k: v for k, v in before.items() if k != f"{folder.name}/status.json"}


def test_evaluation_on_the_way(experiment: Make, tmp_path: Path) -> None:
    """Weights are kept at the checkpoints, and evaluated there; a checkpoint at or after the end is the end."""
    content = experiment(evaluation__checkpoints=[2, 4, 6, 99], training__checkpoint_every=3)
    run(content, tmp_path / "tiny", study="budget")
    for arm in ("emb_only", "rank_only", "joint_single"):
        folder = folder_of(tmp_path / "tiny", arm)
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"at-2", "at-4", "final"}
        assert {path.name for path in scores(folder).parent.iterdir()} == {"at-2", "at-4", "final"}
        task = "embedding" if arm == "emb_only" else "reranking"
        rankings = []
        for moment, step in (("at-2", 2), ("at-4", 4), ("final", None)):
            found = scores(folder, "kitchen", task, moment=moment)
            assert {path.name for path in found.iterdir()} == FILES
            assert read_json(found / "metrics.json")["step"] == step
            rankings.append((found / "run.trec").read_text())
        assert len(set(rankings)) == 3, "each is scored with weights of its own"
    assert [path.name for path in scores(folder_of(tmp_path / "tiny", "untrained")).parent.iterdir()] == ["final"]
    points = read_json(tmp_path / "tiny" / "results.json")["points"]["points"]
    found = {(point["arm"], point["task"], point["step"]): point["x"]["steps"] for point in points}
    for arm, task in (("emb_only", "embedding"), ("rank_only", "reranking"), ("joint_single", "embedding")):
        assert [found[arm, task, step] for step in (2, 4, None)] == [2, 4, 6]


def test_a_checkpoint_that_was_not_kept_cannot_be_evaluated(copy: Path, experiment: Make, untrainable: None) -> None:
    with pytest.raises(UserError, match="has no weights of 'at-2': they are kept while a run trains"):
        run(experiment(evaluation__checkpoints=[2]), copy, amend=True)


def test_whole_searches_are_made_of_finished_models(experiment: Make) -> None:
    content = experiment(evaluation__suites__test__whole_search=True, evaluation__checkpoints=[2])
    spec = next(spec for spec in specs(content) if spec.arm == "joint_single")
    measured = {(found.moment, found.measure.value) for found in expected(Path(), spec)}
    both, whole = {"embedding", "reranking"}, {"fused", "blended", "search"}
    assert measured == {("at-2", name) for name in both} | {("final", name) for name in both | whole}


def test_whole_searches(copy: Path, experiment: Make, untrainable: None) -> None:
    """Vectors fused with BM25, and that list reranked, for models that can; each stands on its own."""
    content = experiment(evaluation__suites__test__whole_search=True)
    before = snapshot(copy / "runs")
    run(content, copy, amend=True)
    after = snapshot(copy / "runs")
    scored = {name: found for name, found in before.items() if "/eval/" in name}
    assert {name: after[name] for name in scored} == scored, "what is there is not done again"
    both, fused = {"embedding", "reranking"}, {"fused", "blended", "search"}
    wanted = {
        "bm25-s0": both,
        "random-s0": both,
        "untrained-s1": both,
        "emb_only-s1": {"embedding", "fused"},
        "rank_only-s1": {"reranking", "blended"},
        "joint_single-s1": both | fused,
    }
    for spec in specs(content):
        [suite] = spec.suites
        model = spec.train.model if spec.train is not None else spec.model
        root = copy / "runs" / spec.folder / "eval" / f"test-{suite.key(spec.key, model)}" / "final" / "kitchen"
        assert {path.name for path in root.iterdir()} == wanted[f"{spec.arm}-s{spec.seed}"], spec.arm
        if spec.arm == "joint_single":
            runs = {name: read_trec(root / name / "run.trec") for name in ("embedding", "fused", "search")}
            for query, fused in runs["fused"].items():
                assert fused.keys() == runs["search"][query].keys()
                top = sorted(fused, key=lambda document: (-fused[document], document))[:8]
                found = sorted(runs["search"][query], key=lambda d: (-runs["search"][query][d], d))
                assert set(found[:8]) == set(top), "the top is reranked, and nothing else"
            assert runs["fused"] != runs["embedding"]
    macro = read_json(copy / "results.json")["scores"][""]["embedding"]["macro"]
    assert {"joint_single", "joint_single+bm25", "joint_single+bm25+rerank", "emb_only+bm25"} <= macro.keys()


def test_a_search_scores_no_pair_twice(
    finished: Path, tmp_path: Path, experiment: Make, untrainable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been reranked is read; the order is the one of scoring it again."""
    found, counts = [], []
    for name in ("read", "again"):
        folder, pairs = shutil.copytree(finished, tmp_path / name), []
        real = evaluation.rerank

        def counted(*given: Any, pairs: list[int] = pairs, real: Callable[..., Any] = real, **more: Any) -> Any:
            pairs.append(sum(map(len, given[3].values())))
            return real(*given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "rerank", counted)
            if name == "again":
                patch.setattr(run_evaluate, "_known", lambda wanted, system, top: {query: {} for query in top})
            run(experiment(evaluation__suites__test__whole_search=True), folder, amend=True)
        counts.append(sum(pairs))
        found.append(
            [read_trec(path) for path in sorted(folder.glob("runs/joint_single-*/eval/*/final/*/search/run.trec"))]
        )
    assert found[0] == found[1] and found[0]
    assert 0 < counts[0] < counts[1]


def test_whole_searches_by_weighted_scores(copy: Path, experiment: Make, untrainable: None) -> None:
    """Of the model and of BM25; the weight is part of what names the scores."""
    suite = {"evaluation__suites__test__whole_search": True}
    by_ranks, by_scores = (
        specs(experiment(**suite, **({"evaluation__suites__test__first_stage_weight": w} if w else {})))
        for w in (None, 0.5)
    )
    assert {s.suites[0].key(s.key, s.model) for s in by_ranks}.isdisjoint(
        s.suites[0].key(s.key, s.model) for s in by_scores
    )
    run(experiment(**suite, evaluation__suites__test__first_stage_weight=0.5), copy, amend=True)
    joint = next(spec for spec in by_scores if spec.arm == "joint_single")
    assert joint.train is not None
    root = copy / "runs" / joint.folder / "eval" / f"test-{joint.suites[0].key(joint.key, joint.train.model)}" / "final"
    found = {name: read_trec(root / "kitchen" / name / "run.trec") for name in ("embedding", "reranking", "blended")}
    fused = read_trec(root / "kitchen" / "fused" / "run.trec")
    collection = suite_data(joint.suites[0].suite)["kitchen"]
    assert fused == combine([(found["embedding"], 1.0), (bm25_run(collection, 8), 0.5)])
    assert found["blended"] == combine([(found["reranking"], 1.0), (cut(bm25_run(collection, 8), 8), 0.5)])


def with_own_search(content: dict[str, Any], depth: int) -> dict[str, Any]:
    """A second suite, in which every system reranks what itself has found."""
    suites = content["evaluation"]["suites"]
    suites["own"] = {**suites["test"], "first_stage": "dense", "rerank_depth": depth}
    return content


def test_a_suite_of_different_lists_decides_nothing(experiment: Make, tmp_path: Path) -> None:
    """Interference in reranking would be mixed with that in search."""
    message = r"evaluation\.suites\.test\.first_stage: with 'dense' every arm reranks a list of its own"
    with pytest.raises(UserError, match=message):
        run(experiment(evaluation__suites__test__first_stage="dense"), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_candidates_may_lie_deeper_than_a_search_is_scored(
    copy: Path, experiment: Make, untrainable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_evaluate, "SEARCH_DEPTH", 5)
    monkeypatch.setattr(first_stage, "SEARCH_DEPTH", 5)
    content = with_own_search(experiment(), depth=8)
    run(content, copy, amend=True)
    joint = next(spec for spec in specs(content) if spec.arm == "joint_single")
    assert joint.train is not None
    root = copy / "runs" / joint.folder / "eval" / f"own-{joint.suites[1].key(joint.key, joint.train.model)}" / "final"
    lengths = [
        {len(documents) for documents in read_trec(root / "kitchen" / name / "run.trec").values()}
        for name in ("embedding", "reranking")
    ]
    assert lengths == [{5}, {8}]


def test_candidates_of_the_models_own_search(copy: Path, experiment: Make, untrainable: None) -> None:
    """Each system reranks what itself has found, so there is no common ceiling."""
    content = with_own_search(experiment(), depth=3)
    run(content, copy, amend=True)
    for spec in specs(content):
        if spec.arm not in ("joint_single", "untrained"):
            continue
        _, suite = spec.suites
        model = spec.train.model if spec.train is not None else spec.model
        root = copy / "runs" / spec.folder / "eval" / f"own-{suite.key(spec.key, model)}" / "final" / "garden"
        dense, reranked = (read_trec(root / name / "run.trec") for name in ("embedding", "reranking"))
        for query, documents in reranked.items():
            best = sorted(dense[query], key=lambda document: (-dense[query][document], document))[:3]
            assert documents.keys() == set(best)
        summary = read_json(root / "reranking" / "metrics.json")
        assert (summary["first_stage"], summary["depth"], summary["ceiling"]) == ("dense", 3, None)


def test_candidates_of_run_files(copy: Path, experiment: Make, tmp_path: Path, untrainable: None) -> None:
    """Somebody else's rankings, one file for each collection; a reranking lists its first `rerank_depth`."""
    files = tmp_path / "lists"
    files.mkdir()
    random = folder_of(copy, "random", 0)
    for domain in tiny.THINGS:
        shutil.copy(scores(random, domain, "embedding", "run.trec"), files / f"{domain}.trec")
    content = experiment(evaluation__suites__test__first_stage=str(files))
    run(content, copy, amend=True)
    for domain in tiny.THINGS:
        given = read_trec(files / f"{domain}.trec")
        seen = set()
        for spec in specs(content):
            if Task.RERANKING not in spec.tasks:
                continue
            [suite] = spec.suites
            model = spec.train.model if spec.train is not None else spec.model
            root = copy / "runs" / spec.folder / "eval" / f"test-{suite.key(spec.key, model)}" / "final" / domain
            for query, documents in read_trec(root / "reranking" / "run.trec").items():
                best = sorted(given[query], key=lambda document: (-given[query][document], document))[:8]
                assert documents.keys() == set(best)
            seen.add(spec.arm)
        assert seen == {"bm25", "random", "untrained", "rank_only", "joint_single"}
    lines = (files / "garden.trec").read_text().splitlines(keepends=True)
    query = lines[0].split()[0]
    (files / "garden.trec").write_text("".join(line for line in lines if line.split()[0] != query))
    forget()
    [note] = lacking(tiny.parsed(content).evaluation.suites["test"])
    assert note.startswith(f"garden: {files} has no candidates for 1 of 8 queries, such as '{query}'")
    (files / "garden.trec").unlink()
    forget()
    content["evaluation"]["suites"]["test"]["rerank_depth"] = 5
    with pytest.raises(UserError, match=r"garden\.trec"):
        run(content, copy, amend=True)


@pytest.mark.parametrize("strikes", [1, 4, 6])
def test_a_disk_that_fills_in_the_middle_of_an_evaluation_loses_nothing(
    strikes: int, finished: Path, copy: Path, experiment: Make, monkeypatch: pytest.MonkeyPatch, untrainable: None
) -> None:
    """One line, no half evaluation; the same command goes on from there."""
    for arm, seed in (("untrained", 1), ("joint_single", 1)):
        shutil.rmtree(folder_of(copy, arm, seed) / "eval")
    before = snapshot(copy / "runs")
    real, calls = evaluation.write_trec, 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == strikes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    monkeypatch.setattr(evaluation, "write_trec", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device; free space or choose") as caught:
        run(experiment(), copy)
    assert "\n" not in str(caught.value)
    assert not list(copy.rglob("*.tmp"))
    written = snapshot(copy / "runs")
    assert len([name for name in written.keys() - before.keys() if name.endswith("run.trec")]) == strikes - 1
    run(experiment(), copy)
    after = snapshot(copy / "runs")
    kept = {name: found for name, found in written.items() if "/eval/" in name}
    assert {name: after[name] for name in kept} == kept
    assert (copy / "decision.json").read_bytes() == (finished / "decision.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__domains__kitchen": {"source": "/nowhere"}}, "folder '/nowhere' does not exist"),
        ({"evaluation__suites__test__collections__garden": {"source": "/nowhere"}}, "folder '/nowhere' does not exist"),
        ({"evaluation__suites__test__collections": "nowhere"}, "no suite or folder 'nowhere'"),
        ({"model__base": "/nowhere"}, "model.base: /nowhere: no such folder"),
        ({"variants": {"a": {"model.layers": 99}}}, "model.layers: 99 asked for, but the model has 3"),
        ({"evaluation__suites__test__split": "dev"}, "has no split 'dev'"),
    ],
    ids=["data", "collection", "suite", "base", "variant", "split"],
)
def test_a_study_that_cannot_begin_leaves_nothing_behind(
    changes: dict[str, Any], message: str, experiment: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "out"
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
        run(experiment(**changes), folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_says_why(experiment: Make, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match=r"taken: cannot be written: a file of that name is in the way; choose another"):
        run(experiment(), tmp_path / "taken")
    with pytest.raises(UserError, match=r"taken/below: cannot be written: Not a directory; choose another --output"):
        run(experiment(), tmp_path / "taken" / "below")
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_workload_counts_steps_and_evaluations(experiment: Make) -> None:
    content = experiment(seeds=[1, 2])
    del content["evaluation"]["suites"]["test"]["collections"]["garden"]
    assert workload(specs(content)) == {
        "reference": 4,
        "train embedding": 24,
        "train reranking": 24,
        "evaluate embedding": 5,
        "evaluate reranking": 6,
    }


def test_a_study_does_not_replace_the_files_of_a_single_run(experiment: Make, copy: Path) -> None:
    single = folder_of(copy, "rank_only")
    before = snapshot(single)
    with pytest.raises(UserError, match="holds a single run, whose files a study would replace"):
        run(experiment(), single)
    assert snapshot(single) == before
