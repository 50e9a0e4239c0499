"""`unimoer export`: a run becomes folders of other programs, or one line says why not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny
from unimoer.model.checkpoint import fingerprint, save_model
from unimoer.runs.folder import write_spec
from unimoer.studies.planning import single_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call) -> Call:
    """Run `unimoer export ...`."""
    return lambda *arguments: call("export", *arguments)


@pytest.fixture
def refused(call: Call, tmp_path: Path) -> Callable[..., str]:
    """The one line that a user's mistake gets; nothing is written."""

    def run(*arguments: str | Path) -> str:
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        assert line.startswith("unimoer: ")
        assert not list(tmp_path.glob("*out*"))
        return line

    return run


def checkpoint(base: Path, folder: Path, **changes: Any) -> Path:
    save_model(tiny.build(base, noise=0.1, **changes), folder)
    return folder


def run_folder(arm: str, base: Path, tmp_path: Path, content: dict[str, Any]) -> Path:
    """What `unimoer train` leaves behind, as far as an export reads it."""
    run = tmp_path / "run"
    checkpoint(base, run / "checkpoints" / "final")
    write_spec(run, single_run(tiny.parsed(content | {"arms": [arm]}), tiny.CPU))
    return run


def test_help(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert all(word in plain for word in ("--output", "--format", "peft", "merged"))


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_checkpoint_is_exported_for_both_tasks(form: str, call: Call, base: Path, tmp_path: Path) -> None:
    saved = checkpoint(base, tmp_path / "final")
    code, out, _ = call(saved, "--output", "out", "--format", form)
    assert code == 0
    assert out.splitlines() == [f"{form}  out/embedding", f"{form}  out/reranking"]
    weights = "adapter_model.safetensors" if form == "peft" else "model.safetensors"
    for task in ("embedding", "reranking"):
        files = {path.name for path in (tmp_path / "out" / task).iterdir()}
        assert {weights, "export.json", "README.md"} <= files
        assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert (tmp_path / "out" / "reranking" / "score_head.safetensors").exists()


@pytest.mark.parametrize(
    ("arm", "tasks"),
    [("emb_only", ["embedding"]), ("rank_only", ["reranking"]), ("joint_single", ["embedding", "reranking"])],
)
@pytest.mark.parametrize("named", ["run", "run/checkpoints/final"])
def test_a_run_is_exported_for_the_tasks_it_was_trained_for(
    arm: str, tasks: list[str], named: str, call: Call, base: Path, tmp_path: Path, experiment: Callable[..., Any]
) -> None:
    run_folder(arm, base, tmp_path, experiment())
    assert call(named, "--output", "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == tasks


def test_a_folder_that_exists_is_refused(call: Call, base: Path, tmp_path: Path) -> None:
    saved = checkpoint(base, tmp_path / "final")
    (tmp_path / "there").mkdir()
    code, _, err = call(saved, "--output", "there")
    assert code == 2
    assert err.splitlines() == ["unimoer: there: exists already; choose another --output, or remove it"]
    assert not list((tmp_path / "there").iterdir())


def test_no_checkpoint(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nothing", "--output", "out")


def test_weights_that_depend_on_the_text(refused: Callable[..., str], base: Path, tmp_path: Path) -> None:
    adapter = {"rank": 4, "alpha": 8.0, "experts": {"one": 2, "two": 2}, "router": {"type": "softmax"}}
    saved = checkpoint(base, tmp_path / "final", adapter=adapter)
    # Refused before anything is loaded.
    (saved / "adapter.safetensors").unlink()
    for form in ("peft", "merged"):
        assert "router 'softmax' weighs the experts anew for every text" in refused(
            saved, "--output", "out", "--format", form
        )


def test_another_base_is_refused_with_both_hashes(refused: Callable[..., str], base: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(base, tmp_path / "base")
    saved = checkpoint(mine, tmp_path / "final")
    expected = json.loads((saved / "unimoer.json").read_text())["base_fingerprint"]
    weights = load_file(mine / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(weights, mine / "model.safetensors", metadata={"format": "pt"})
    found = fingerprint(tiny.build(mine))
    assert found != expected
    line = refused(saved, "--output", "out")
    assert expected in line
    assert found in line


def test_an_unknown_format(call: Call, base: Path, tmp_path: Path) -> None:
    code, _, err = call(tmp_path, "--output", "out", "--format", "onnx")
    assert code == 2
    assert "onnx" in err


def test_a_task_on_its_own(call: Call, base: Path, tmp_path: Path) -> None:
    saved = checkpoint(base, tmp_path / "final")
    assert call(saved, "--output", "out", "--task", "reranking")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reranking"]


def test_a_task_that_was_not_trained(
    refused: Callable[..., str], base: Path, tmp_path: Path, experiment: Callable[..., Any]
) -> None:
    run = run_folder("emb_only", base, tmp_path, experiment())
    line = refused(run, "--output", "out", "--task", "both")
    assert line == f"unimoer: {run}: was not trained for reranking; leave --task out, or name embedding"


@pytest.mark.parametrize("head", ["listwise", "cosine"])
def test_heads_that_read_lists(head: str, refused: Callable[..., str], call: Call, base: Path, tmp_path: Path) -> None:
    saved = checkpoint(base, tmp_path / "final", reranking={"pooling": "mean", "head": head, "list_size": 3})
    assert f"head '{head}' reads a query with all its candidates" in refused(saved, "--output", "out")
    assert call(saved, "--output", "out", "--task", "embedding")[0] == 0
