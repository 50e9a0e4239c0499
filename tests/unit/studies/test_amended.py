"""Plans that change under finished runs, variants that share them, and folders that hold scores alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.cli import main
from unimoer.config import load_config
from unimoer.errors import UserError
from unimoer.executors import Job
from unimoer.executors.local import LocalExecutor
from unimoer.files import read_json
from unimoer.runs import Watch, execute
from unimoer.runs.data import forget
from unimoer.schema import Results, read_record
from unimoer.studies.planning import single_run
from unimoer.studies.run import write_results

Make = Callable[..., dict[str, Any]]
run = tiny.run_study


def scored(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "results.json")
    return {"ceilings": content["ceilings"], "scores": content["scores"]}


def test_a_plan_that_goes_back_is_scored_as_it_says(copy: Path, experiment: Make) -> None:
    """All evaluations are there then, and nothing runs that could say which of them count."""
    first = scored(copy)
    run(experiment(evaluation__suites__test__rerank_depth=3), copy, amend=True)
    assert scored(copy) != first
    run(experiment(), copy, amend=True)
    assert scored(copy) == first


def test_scores_of_the_old_plan_are_not_taken_for_the_new_ones(copy: Path, experiment: Make) -> None:
    class Killed:
        workers = 1

        def run(self, jobs: Sequence[Job], watch: Watch) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment(evaluation__suites__test__rerank_depth=3), copy, amend=True, executor=Killed())
    with pytest.raises(UserError, match=r"per_query\.jsonl: missing; repeat the command that started the study"):
        write_results(copy)


def test_a_run_that_variants_share_is_run_once_and_stands_in_both(experiment: Make, tmp_path: Path) -> None:
    """Here the untrained base, which no learning rate changes. Two workers would meet at its lock."""

    class Watched(LocalExecutor):
        def run(self, jobs: Sequence[Job], watch: Watch) -> None:
            folders.extend(folder for _, folder in jobs)
            super().run(jobs, watch)

    folders: list[Path] = []
    variants = {"slow": {"training.optimizer.lr": 1e-3}, "fast": {"training.optimizer.lr": 1e-2}}
    run(experiment(variants=variants), tmp_path / "study", study="scale", executor=Watched())
    assert len(folders) == len(set(folders)) == 2 + 1 + 2 * 3
    results = read_record(Results, tmp_path / "study" / "results.json")
    assert [one.status.variant for one in results.runs if one.status.arm == "untrained"] == ["slow", "fast"]
    assert all("untrained" in found.macro for tables in results.scores.values() for found in tables.values())


def test_the_configuration_beside_the_results_can_be_run_again(finished: Path) -> None:
    again = load_config(finished / "config.yaml")
    assert (again.name, again.seeds, again.arms) == ("tiny", (1,), ("emb_only", "rank_only", "joint_single"))
    planned = {path.name for path in (finished / "runs").iterdir()}
    for arm in again.arms:
        assert single_run(again.model_copy(update={"arms": (arm,)}), tiny.CPU).folder in planned


def test_a_published_folder_keeps_what_only_runs_can_say(copy: Path) -> None:
    before, decided = read_json(copy / "results.json"), read_json(copy / "decision.json")
    assert decided["gradient_conflicts"]
    shutil.rmtree(copy / "runs")
    with pytest.raises(SystemExit) as stop:
        main(["analyze", str(copy)])
    assert stop.value.code == 0
    after = read_json(copy / "results.json")
    for part in ("ceilings", "arms", "runs", "routing", "provenance"):
        assert after[part] == before[part]
    systems = [content["scores"][""]["embedding"]["macro"]["joint_single"] for content in (before, after)]
    assert systems[0]["metrics"].keys() == systems[1]["metrics"].keys() > {"ndcg@10"}
    assert read_json(copy / "decision.json")["gradient_conflicts"] == decided["gradient_conflicts"]


def test_a_run_is_not_made_on_other_content_than_its_key_says(
    experiment: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    """A worker reads files by itself, and later than they were planned on."""
    moving = shutil.copytree(data["kitchen"], tmp_path / "kitchen")
    content = experiment(arms=["emb_only"], data__domains={"kitchen": {"source": str(moving)}})
    spec = single_run(tiny.parsed(content), tiny.CPU)
    (moving / "corpus.jsonl").write_text((moving / "corpus.jsonl").read_text().replace("kettle", "teapot"))
    forget()
    with pytest.raises(UserError, match=r"data\.domains 'kitchen': is not what this run was planned on"):
        execute(spec, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
