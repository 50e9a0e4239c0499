"""Two things that differ never share a key: other scores would be read as their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from unimoer.config import UNTRAINED, RunSpec, SuiteConfig
from unimoer.data.beir import read_beir
from unimoer.errors import UserError
from unimoer.evaluation.first_stage import candidates_fingerprint
from unimoer.model.identity import _identity, base_identity
from unimoer.runs import execute, ignore
from unimoer.runs.checkpoint import evaluate_checkpoint, suite_of
from unimoer.runs.identity import suite_spec
from unimoer.schema import EvaluationSummary
from unimoer.studies.planning import plan_study, single_run
from unimoer.types import Task

Make = Callable[..., dict[str, Any]]


def untrained(content: dict[str, Any]) -> RunSpec:
    runs = plan_study(tiny.parsed(content), "kill-gate", {}, tiny.CPU).runs
    return next(spec for spec in runs if spec.arm == UNTRAINED)


def test_an_untrained_base_of_other_content_is_another_run(base: Path, experiment: Make, tmp_path: Path) -> None:
    moved = shutil.copytree(base, tmp_path / "base")
    content = experiment(model__base=str(moved))
    before = untrained(content).key
    assert untrained(content).key == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rope_theta": 123.0}))
    _identity.cache_clear()
    assert untrained(content).key != before


def test_an_untrained_base_in_another_precision_is_another_run(
    experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is settled by the machine, which may be another one when the command is repeated."""
    keys = set()
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("unimoer.runs.identity.resolve_dtype", lambda *_, found=dtype: found)
        keys.add(untrained(experiment(model__dtype="auto")).key)
    assert len(keys) == 2


def test_a_checkpoint_on_the_way_has_scores_of_its_own(experiment: Make, data: dict[str, Path], tmp_path: Path) -> None:
    """And so has what replaces a checkpoint of the same name."""
    content = experiment(arms=["emb_only"], evaluation__checkpoints=[2])
    execute(single_run(tiny.parsed(content), tiny.CPU), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    suite = suite_of(tmp_path / "run", [str(data["kitchen"])], None, SuiteConfig(queries=6))

    def score(folder: Path, output: Path | None = None) -> EvaluationSummary:
        found = evaluate_checkpoint(folder, suite, tasks=None, output=output, device=tiny.CPU, watch=ignore)
        return next(one for one in found if one.arm in ("emb_only", "trained"))

    assert score(checkpoints / "at-2").key != score(tmp_path / "run").key
    assert score(checkpoints / "at-2").metrics != score(tmp_path / "run").metrics
    for name in ("at-2", "final"):
        shutil.copytree(checkpoints / name, tmp_path / "alone" / name)
    one, other = (score(tmp_path / "alone" / name, tmp_path / "scores") for name in ("at-2", "final"))
    assert one.metrics != other.metrics


def test_other_run_files_are_other_candidates(data: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "kitchen.trec"
    collections = {"kitchen": {"source": str(data["kitchen"])}}
    suite = SuiteConfig.model_validate({"collections": collections, "first_stage": str(tmp_path)})
    keys = []
    for text in ("q0 Q0 d0 1 1.0 x\n", "q0 Q0 d1 1 1.0 x\n"):
        file.write_text(text)
        keys.append(suite_spec("test", suite, tuple(Task)).key("k", None))
    assert keys[0] != keys[1]
    file.unlink()
    with pytest.raises(UserError, match=r"kitchen\.trec: no such run file; first_stage is bm25, dense, or run files"):
        candidates_fingerprint(str(tmp_path), ["kitchen"])
    assert candidates_fingerprint("bm25", ["kitchen"]) == candidates_fingerprint("dense", ["kitchen"]) == ""


def test_run_files_that_changed_since_the_plan_are_not_reranked(
    experiment: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    """A worker may begin hours after its run was planned."""
    file = tmp_path / "kitchen.trec"
    test = read_beir(data["kitchen"]).qrels["test"]
    file.write_text("".join(f"{query} Q0 d{rank} {rank} {9 - rank} x\n" for query in test for rank in range(4)))
    suite = {"collections": {"kitchen": {"source": str(data["kitchen"])}}, "first_stage": str(file)}
    spec = single_run(tiny.parsed(experiment(arms=["rank_only"], evaluation__suites={"test": suite})), tiny.CPU)
    file.write_text(file.read_text() + "q0 Q0 d9 5 0.1 x\n")
    with pytest.raises(UserError, match=r"first stage '.*kitchen\.trec': is not what this run was planned on"):
        execute(spec, tmp_path / "run")


def test_options_change_the_suite_of_a_run(experiment: Make, tmp_path: Path) -> None:
    """What is asked for is done, and what is not is as the run had it."""
    execute(single_run(tiny.parsed(experiment(arms=["emb_only"])), tiny.CPU), tmp_path / "run")
    own = suite_of(tmp_path / "run", None, None, SuiteConfig())
    assert (own.rerank_depth, own.queries, own.split) == (8, 8, "test")
    other = suite_of(tmp_path / "run", None, None, SuiteConfig(rerank_depth=5, split="train"))
    assert (other.rerank_depth, other.queries, other.split) == (5, 8, "train")


def test_a_run_does_not_write_into_the_folder_of_a_study(experiment: Make, tmp_path: Path) -> None:
    """Both have a `config.yaml`."""
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="holds a study, whose files a run would replace; choose another --output"):
        execute(single_run(tiny.parsed(experiment(arms=["emb_only"])), tiny.CPU), tmp_path)
    assert not (tmp_path / "config.yaml").exists()


def test_bases_that_differ_in_any_matrix_are_two(base: Path, tmp_path: Path) -> None:
    """As two merged adapters of few projections are: all else is byte for byte the same."""
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "layers.1.self_attn.k_proj" in name)
    found = set()
    for change in (0.0, 0.5):
        folder = tmp_path / str(change)
        shutil.copytree(base, folder)
        save_file({**weights, name: weights[name] + change}, folder / "model.safetensors", {"format": "pt"})
        found.add(base_identity(tiny.model_config(folder)))
    assert len(found) == 2


def test_another_base_in_place_of_the_planned_one_is_refused(base: Path, experiment: Make, tmp_path: Path) -> None:
    """Also where a run is trained already, and of the untrained base: scores would stand under the planned key."""
    moved = shutil.copytree(base, tmp_path / "base")
    content = experiment(model__base=str(moved), arms=["rank_only"])
    trained = single_run(tiny.parsed(content), tiny.CPU)
    execute(trained, tmp_path / "run")
    reference = untrained(experiment(model__base=str(moved)))
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rope_theta": 123.0}))
    _identity.cache_clear()
    shutil.rmtree(tmp_path / "run" / "eval")
    for spec, folder in ((trained, tmp_path / "run"), (reference, tmp_path / "reference")):
        with pytest.raises(UserError, match=r"model\.base .*is not what this run was planned on"):
            execute(spec, folder)
