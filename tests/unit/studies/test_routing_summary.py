"""Routing logs: what counts as late, how seeds are put together, and what the task says about the expert."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unimoer.config import RunSpec
from unimoer.schema import Environment, RunStatus
from unimoer.studies.evidence import RunFolder
from unimoer.studies.routing_summary import mutual_information, summarise_routing
from unimoer.types import Task

EXPERTS = ["embedding", "reranking", "shared"]


def line(step: int, task: str, weights: Sequence[float], router: str = "0", **more: Any) -> dict[str, Any]:
    found = {"step": step, "task": task, "router": router, "experts": EXPERTS, "weights": list(weights)}
    return {**found, "entropy": 0.5, "active_experts": 2.0, "one_expert_share": 0.25, **more}


def run(folder: Path, lines: Sequence[dict[str, Any]], seed: int = 1) -> RunFolder:
    folder.mkdir(exist_ok=True)
    (folder / "routing.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")
    spec = RunSpec(arm="joint_moe", seed=seed, suites=())
    return RunFolder(folder, spec, RunStatus(state="done", arm="joint_moe", seed=seed), Environment())


def alternating(steps: int, embedding: Sequence[float], reranking: Sequence[float]) -> list[dict[str, Any]]:
    """A log whose weights count only in the last quarter: before it everything goes to the shared expert."""
    lines = []
    for step in range(1, steps + 1):
        late = step > 0.75 * steps
        for task, weights in (("embedding", embedding), ("reranking", reranking)):
            lines.append(line(2 * step, task, weights if late else [0, 0, 1], entropy=0.9 if late else 0.0))
    return lines


@pytest.mark.parametrize(
    ("first", "second", "bits"),
    [
        ([1, 0, 0], [0, 1, 0], 1.0),
        ([0.5, 0.5, 0], [0, 0, 1], 1.0),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5], 0.0),
        ([2, 3, 5], [0.2, 0.3, 0.5], 0.0),
        ([1, 0], [0.5, 0.5], 0.311278),
        ([0, 0], [0.5, 0.5], None),
    ],
)
def test_mutual_information(first: list[float], second: list[float], bits: float | None) -> None:
    for found in (mutual_information(first, second), mutual_information(second, first)):
        assert found == (None if bits is None else pytest.approx(bits, abs=1e-6))
        assert found is None or 0 <= found <= 1


def test_the_last_quarter_counts(tmp_path: Path) -> None:
    found = summarise_routing([run(tmp_path / "a", alternating(8, [0.8, 0.2, 0.0], [0.2, 0.8, 0.0]))])
    assert found is not None
    [router] = found.routers
    assert router.tasks[Task.EMBEDDING].weights == pytest.approx([0.8, 0.2, 0.0])
    assert router.tasks[Task.RERANKING].entropy == pytest.approx(0.9)
    assert router.tasks[Task.RERANKING].steps == (14, 16)
    assert router.tasks[Task.RERANKING].one_expert_share == 0.25
    assert router.mutual_information == pytest.approx(mutual_information([0.8, 0.2], [0.2, 0.8]))
    assert found.mutual_information == router.mutual_information
    assert found.within_task == pytest.approx(0.0, abs=1e-12)
    assert (found.experts, found.units) == (EXPERTS, 3)


def test_what_was_there_before_anything_was_learned(tmp_path: Path) -> None:
    """Of the first batch of each task, which is not the same step."""
    lines = alternating(8, [0.8, 0.2, 0.0], [0.2, 0.8, 0.0])
    for line in lines[:2]:
        line["weights"] = [1.0, 0.0, 0.0] if line["task"] == "embedding" else [0.5, 0.5, 0.0]
    found = summarise_routing([run(tmp_path / "a", lines)])
    assert found is not None
    assert found.at_start == pytest.approx(mutual_information([1.0, 0.0], [0.5, 0.5]))


def test_seeds_are_averaged_and_those_that_swap_roles_are_seen_to(tmp_path: Path) -> None:
    lines = alternating(8, [1, 0, 0], [0, 1, 0]), alternating(8, [0, 1, 0], [1, 0, 0])
    found = summarise_routing([run(tmp_path / str(seed), one, seed) for seed, one in enumerate(lines)])
    assert found is not None
    [router] = found.routers
    assert router.tasks[Task.EMBEDDING].weights == pytest.approx([0.5, 0.5, 0.0])
    assert router.mutual_information == pytest.approx(1.0)
    assert router.per_seed == {"0": pytest.approx(1.0), "1": pytest.approx(1.0)}
    assert router.of_mean_weights == pytest.approx(0.0)


def test_killed_and_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    lines = alternating(12, [0.7, 0.2, 0.1], [0.1, 0.2, 0.7])
    whole = summarise_routing([run(tmp_path / "whole", lines)])
    wrong = [{**one, "weights": [0.0, 0.0, 1.0]} for one in lines[12:]]
    resumed = run(tmp_path / "resumed", [*lines[:12], *wrong])
    log = resumed.folder / "routing.jsonl"
    log.write_text(
        log.read_text("utf-8")
        + '{"step": 24, "task": "embed\n'
        + "".join(json.dumps(one) + "\n" for one in lines[12:]),
        "utf-8",
    )
    assert summarise_routing([resumed]) == whole


def test_batches_that_differ_show_as_noise(tmp_path: Path) -> None:
    """A task whose own batches are routed differently says little about a difference between tasks."""
    lines = [line(step, task, [step % 2, 1 - step % 2, 0]) for step in range(16) for task in ("embedding", "reranking")]
    found = summarise_routing([run(tmp_path / "a", lines)])
    assert found is not None
    assert found.mutual_information == pytest.approx(0.0) and found.within_task == pytest.approx(1.0)


def test_routers_in_the_order_of_layers(tmp_path: Path) -> None:
    names = ["10", "2.qkv", "0", "2.mlp"]
    lines = [line(1, task, [1, 0, 0], router=name) for name in names for task in ("embedding", "reranking")]
    found = summarise_routing([run(tmp_path / "a", lines)])
    assert found is not None
    assert [(entry.router, entry.layer) for entry in found.routers] == [
        ("0", 0),
        ("2.mlp", 2),
        ("2.qkv", 2),
        ("10", 10),
    ]


def test_routed_ranks_have_no_names(tmp_path: Path) -> None:
    lines = [line(1, task, [1 / 16] * 16, experts=["shared"]) for task in ("embedding", "reranking")]
    found = summarise_routing([run(tmp_path / "a", lines)])
    assert found is not None
    assert found.units == 16 and found.experts == [] and found.routers[0].experts == []


def test_nothing_logged_and_one_task_logged(tmp_path: Path) -> None:
    silent = run(tmp_path / "silent", [])
    assert summarise_routing([]) is None and summarise_routing([silent]) is None
    found = summarise_routing([silent, run(tmp_path / "one", [line(1, "embedding", [1, 0, 0])], seed=2)])
    assert found is not None
    assert found.seeds == [2] and found.mutual_information is None and found.within_task is None
