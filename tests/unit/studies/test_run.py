"""Whole experiments in this process: skipping, continuing, refusing, and what lies on disk afterwards."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from unimoer.experiments.evaluation import checkpoint_folder, evaluate_checkpoint
from unimoer.experiments.plan import plan_runs
from unimoer.experiments.run import is_done
from unimoer.experiments.runner import locked, run_experiment, run_single, workload

import tiny
from unimoer.errors import UserError
from unimoer.files import read_json
from unimoer.model.checkpoint import load_model
from unimoer.types import Task

Make = Callable[..., dict[str, Any]]


def quiet() -> Console:
    return Console(file=io.StringIO())


def run(content: dict[str, Any], folder: Path) -> str:
    """The whole experiment; returns what it printed."""
    console = quiet()
    run_experiment(tiny.parsed(content), folder, device=tiny.CPU, command="test", console=console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def single(content: dict[str, Any], folder: Path) -> str:
    console = quiet()
    run_single(tiny.parsed(content), folder, device=tiny.CPU, console=console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def one_arm(experiment: Make, arm: str = "rank_only", **changes: Any) -> dict[str, Any]:
    return experiment(arms=[arm], **changes)


def snapshot(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def finished(base: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished experiment of the default tiny configuration. Tests that change files must copy it."""
    folder = tmp_path_factory.mktemp("finished") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIMOER_CACHE", str(shared_cache))
        run(tiny.experiment(base, data), folder)
    return folder


def test_every_run_leaves_what_the_design_names(finished: Path, experiment: Make) -> None:
    assert {"plan.json", "results.json", "decision.json", "runs"} <= {path.name for path in finished.iterdir()}
    config = tiny.parsed(experiment())
    for planned in plan_runs(config):
        folder = finished / "runs" / planned.folder
        assert is_done(folder)
        expected = {"config.yaml", "env.json", "status.json", "eval"}
        if planned.mode is not None:
            expected |= {"metrics.jsonl", "checkpoints", "training.json", "arm.yaml"}
        if planned.arm == "joint_single":
            expected.add("gradient_conflicts.jsonl")
        assert {path.name for path in folder.iterdir()} == expected
        for domain in tiny.THINGS:
            for task in planned.tasks:
                evaluation = folder / "eval" / domain / task.value
                assert {path.name for path in evaluation.iterdir()} == {"run.trec", "per_query.jsonl", "metrics.json"}
                assert len(tiny.lines(evaluation / "per_query.jsonl")) == 8
        if planned.mode is not None:
            assert [path.name for path in (folder / "checkpoints").iterdir()] == ["final"]
            served = read_json(folder / "status.json")["serving"]
            assert {f"{task.value}_ms" for task in planned.tasks} == {key for key in served if key.endswith("_ms")}
            assert all(value > 0 for value in served.values())
        assert tiny.parsed(yaml.safe_load((folder / "config.yaml").read_text())) == config
        assert read_json(folder / "env.json")["config_hash"] == config.run_hash(planned.arm, planned.seed)


def test_candidates_and_ceilings_are_the_same_for_every_arm(finished: Path) -> None:
    """And a reranking run lists its candidates and nothing else."""
    for domain in tiny.THINGS:
        lists, ceilings = set(), set()
        for trec in finished.glob(f"runs/*/eval/{domain}/reranking/run.trec"):
            rows = [line.split() for line in trec.read_text().splitlines()]
            lists.add(frozenset((row[0], row[2]) for row in rows))
            ceilings.add(json.dumps(read_json(trec.with_name("metrics.json"))["ceiling"], sort_keys=True))
        assert len(lists) == len(ceilings) == 1


def test_no_file_of_an_experiment_is_a_pickle(finished: Path) -> None:
    """Pickles of protocol 2 and later start with 0x80; torch.save writes zip archives of them."""
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {".safetensors", ".json", ".jsonl", ".yaml", ".trec"} <= {path.suffix for path in files}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK\x03\x04")), path


def test_a_finished_experiment_is_skipped(finished: Path, experiment: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "tiny")
    before = snapshot(folder / "runs")
    decision = (folder / "decision.json").read_bytes()
    printed = run(experiment(), folder)
    assert "5 of 5 runs are already done" in printed
    assert snapshot(folder / "runs") == before
    assert (folder / "decision.json").read_bytes() == decision


def test_another_seed_is_added_to_what_is_done(finished: Path, experiment: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "tiny")
    before = snapshot(folder / "runs")
    run(experiment(seeds=[1, 2]), folder)
    after = snapshot(folder / "runs")
    assert {name: after[name] for name in before} == before
    assert len(list((folder / "runs").iterdir())) == 9
    decision = read_json(folder / "decision.json")
    assert decision["tasks"]["embedding"]["tir"]["per_seed"].keys() == {"1", "2"}


def test_an_old_verdict_does_not_stand_beside_a_new_plan(
    finished: Path, experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its end, an experiment that grew has no verdict; one that is repeated keeps the one it has."""

    def stop(*_: object) -> None:
        raise tiny.InterruptedRunError

    folder = shutil.copytree(finished, tmp_path / "tiny")
    monkeypatch.setattr("unimoer.experiments.runner.write_results", stop)
    monkeypatch.setattr("unimoer.experiments.runner.execute", stop)
    with pytest.raises(tiny.InterruptedRunError):
        run(experiment(), folder)
    assert (folder / "decision.json").read_bytes() == (finished / "decision.json").read_bytes()
    with pytest.raises(tiny.InterruptedRunError):
        run(experiment(seeds=[1, 2]), folder)
    assert not (folder / "decision.json").exists()
    assert not (folder / "results.json").exists()
    assert not (folder / "figures").exists()
    assert snapshot(folder / "runs").keys() == snapshot(finished / "runs").keys()


def test_a_result_is_a_function_of_the_configuration(finished: Path, experiment: Make, tmp_path: Path) -> None:
    run(experiment(), tmp_path / "again")
    assert (tmp_path / "again" / "decision.json").read_bytes() == (finished / "decision.json").read_bytes()


@pytest.mark.parametrize(("arm", "task"), [("emb_only", "embedding"), ("rank_only", "reranking")])
def test_training_beats_the_untrained_base(
    arm: str, task: str, finished: Path, experiment: Make, tmp_path: Path
) -> None:
    """The whole path learns: data, batches, losses, optimizer, checkpoint, prompts, search, metrics.

    The base is random and has 32 dimensions, so it does not learn much.
    """
    content = one_arm(
        experiment,
        arm,
        training__embedding={"steps": 60, "batch_size": 24},
        training__reranking={"steps": 60, "batch_size": 8, "negatives": 3, "random_until": 0.6},
    )
    single(content, tmp_path / "run")
    [untrained] = (finished / "runs").glob("untrained-*")
    gains = [
        read_json(tmp_path / "run" / found)["metrics"]["ndcg@10"] - read_json(untrained / found)["metrics"]["ndcg@10"]
        for found in (f"eval/{domain}/{task}/metrics.json" for domain in tiny.THINGS)
    ]
    assert sum(gains) / 2 > 0.1


def unfinish(folder: Path) -> None:
    """As a kill before the last line of a run leaves it."""
    status = folder / "status.json"
    status.write_text(json.dumps({**read_json(status), "state": "running"}))


def test_data_that_changed_is_not_mixed_with_older_results(
    experiment: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    """The configuration names a folder, not what is in it; a run that goes on must find what it began with."""
    moving = shutil.copytree(data["kitchen"], tmp_path / "kitchen")
    content = one_arm(experiment, data__domains={"kitchen": {"source": str(moving)}})
    single(content, tmp_path / "run")
    unfinish(tmp_path / "run")
    corpus = moving / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("kettle", "teapot"))
    with pytest.raises(UserError, match="other data"):
        single(content, tmp_path / "run")


@pytest.mark.parametrize("arm", ["untrained", "joint_single"])
def test_finished_runs_on_other_data_are_not_taken_for_these(
    arm: str, finished: Path, experiment: Make, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "tiny")
    [env] = (folder / "runs").glob(f"{arm}-*/env.json")
    env.write_text(json.dumps({**read_json(env), "data": {"kitchen": "0" * 64, "garden": "0" * 64}}))
    with pytest.raises(UserError, match="data"):
        run(experiment(), folder)


def test_a_run_folder_of_another_configuration_is_refused(experiment: Make, tmp_path: Path) -> None:
    """`--output` names the folder here, so the hash in its name cannot tell them apart."""
    single(one_arm(experiment), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match="another configuration"):
        single(one_arm(experiment, training__optimizer__lr=0.5), tmp_path / "run")
    assert snapshot(tmp_path / "run") == before
    assert "already done" in single(one_arm(experiment), tmp_path / "run")


def test_a_half_trained_run_of_another_configuration_is_not_continued(experiment: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        single(one_arm(experiment, training__optimizer__lr=1e30, training__checkpoint_every=1), tmp_path / "run")
    with pytest.raises(UserError, match="another configuration"):
        single(one_arm(experiment), tmp_path / "run")


def test_leftover_checkpoints_go_when_the_final_one_is_there(experiment: Make, tmp_path: Path) -> None:
    """A kill between the two leaves them, and half of whatever was being written."""
    content = one_arm(experiment)
    single(content, tmp_path / "run")
    unfinish(tmp_path / "run")
    for leftover in ("step-4", ".step-6.k1lled", ".final.k1lled"):
        (tmp_path / "run" / "checkpoints" / leftover).mkdir()
    single(content, tmp_path / "run")
    assert is_done(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["final"]


def test_what_is_evaluated_is_not_evaluated_again(experiment: Make, tmp_path: Path) -> None:
    content = one_arm(experiment)
    single(content, tmp_path / "run")
    first = read_json(tmp_path / "run" / "status.json")["eval_seconds"]
    unfinish(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval" / "garden")
    before = snapshot(tmp_path / "run" / "eval")
    single(content, tmp_path / "run")
    after = snapshot(tmp_path / "run" / "eval")
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    assert read_json(tmp_path / "run" / "status.json")["eval_seconds"] > first > 0, "the time of both calls"


def test_a_similarity_arm_keeps_examples_for_its_pilots_and_ends_with_them(experiment: Make, tmp_path: Path) -> None:
    """Fitted after training, saved with the model, and used in its evaluation."""
    arm = {"mode": "joint_moe", "experts": {"embedding": 1, "reranking": 1}}
    arm["router"] = {"type": "similarity", "pilot_queries": 8}
    content = experiment(arms=["mine"], custom_arms={"mine": arm}, training__probe__every=0)
    single(content, tmp_path / "run")
    assert is_done(tmp_path / "run")
    model = load_model(tmp_path / "run" / "checkpoints" / "final", tiny.CPU)
    # Of each domain: queries, documents and pairs, by whichever expert did better.
    assert 6 <= len(model.pilots.owners) <= 12
    assert model.pilots.vectors.shape == (len(model.pilots.owners), 32)
    arm["router"]["pilot_queries"] = 31
    with pytest.raises(UserError, match="60 training queries are too few to keep 31 of them for pilots"):
        single(experiment(arms=["mine"], custom_arms={"mine": arm}), tmp_path / "other")


def test_a_diverged_run_stops_with_one_line_and_makes_no_final(experiment: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf|-inf) at step"):
        single(one_arm(experiment, training__optimizer__lr=1e30), tmp_path / "run")
    assert not is_done(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()


def test_a_run_that_diverges_at_its_last_step_is_not_saved_as_a_result(experiment: Make, tmp_path: Path) -> None:
    """The only loss was a number; what the step made of the weights is not."""
    optimizer = {"lr": 1e30, "warmup_ratio": 0.0}
    with pytest.raises(UserError) as caught:
        single(one_arm(experiment, training__optimizer=optimizer, training__reranking__steps=1), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    # A fork and not a new interpreter: it has all imported, and importing takes seconds.
    holder = os.fork()
    if holder == 0:
        try:
            with locked(tmp_path):
                os.write(write, b"held")
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert os.read(read, 4) == b"held"
        with pytest.raises(UserError, match=rf"another run \(process {holder}\) works here"), locked(tmp_path):
            raise AssertionError("both hold the folder")
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with locked(tmp_path):
        pass


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path), pytest.raises(UserError, match="another run"), locked(tmp_path):
        pass


def test_a_folder_that_is_a_file_is_one_line(experiment: Make, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        run(experiment(), tmp_path / "taken")


def test_the_workload_counts_steps_and_evaluations(experiment: Make) -> None:
    config = tiny.parsed(experiment(seeds=[1, 2], data__domains__garden__evaluate=False))
    assert workload(config, plan_runs(config)) == {
        "bm25": 2,
        "train embedding": 24,
        "train reranking": 24,
        "evaluate embedding": 5,
        "evaluate reranking": 6,
    }


@pytest.fixture
def joint(finished: Path) -> Path:
    [folder] = (finished / "runs").glob("joint_single-*")
    return folder


def evaluated(folder: Path, output: Path, **changes: Any) -> list[tuple[str, ...]]:
    options: dict[str, Any] = {"sources": None, "tasks": tuple(Task), "split": "test", "depth": 8, "queries": None}
    return evaluate_checkpoint(folder, **(options | changes), output=output, device=tiny.CPU, console=quiet())


def test_evaluating_a_run_again_gives_its_own_numbers(joint: Path, tmp_path: Path) -> None:
    rows = evaluated(joint, tmp_path)
    assert len(rows) == 2 * 2 * 3
    for domain, task, system, ndcg, *_ in rows:
        found = read_json(tmp_path / domain / task / system / "metrics.json")
        assert f"{found['metrics']['ndcg@10']:.4f}" == ndcg
        if system == "trained":
            assert found["metrics"] == read_json(joint / "eval" / domain / task / "metrics.json")["metrics"]


def test_evaluating_on_data_of_ones_own(joint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    rows = evaluated(joint, tmp_path, sources=[str(data["garden"])], tasks=(Task.EMBEDDING,))
    assert [row[:3] for row in rows] == [("garden", "embedding", name) for name in ("bm25", "untrained", "trained")]
    assert {row[-1] for row in rows} == {"15"}


def test_sources_of_the_same_name_are_both_evaluated_or_refused(
    joint: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(data["garden"], tmp_path / "elsewhere" / "kitchen")
    sources = [str(data["kitchen"]), str(other)]
    try:
        rows = evaluated(joint, tmp_path / "out", sources=sources, tasks=(Task.EMBEDDING,))
    except UserError as error:
        assert "kitchen" in str(error)
    else:
        assert len(rows) == 6


def test_the_checkpoint_of_a_run_or_of_none(joint: Path, tmp_path: Path) -> None:
    assert checkpoint_folder(joint) == joint / "checkpoints" / "final"
    assert checkpoint_folder(joint / "checkpoints" / "final") == joint / "checkpoints" / "final"
    with pytest.raises(UserError, match="no finished checkpoint here"):
        checkpoint_folder(tmp_path)
    with pytest.raises(UserError, match="name them with --data"):
        evaluated(joint / "checkpoints" / "final", tmp_path)
