"""Two processes that share every batch are one process: same losses, same weights, to float32 rounding.

The processes are real, over gloo and a file as their meeting point; the file doubles as what each of them runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from unimoer.errors import UserError
from unimoer.training.parallel import ALONE, Group, connect

Make = Callable[..., dict[str, Any]]
PROCESSES = 2
THREE = {"embedding": 1, "reranking": 1, "shared": 2}
CALM = {"noise_epsilon": 0.0}
"""Jitter is drawn by every process for its own texts."""
ROUTED = {"model__adapter": {"rank": 16, "alpha": 16.0}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Five queries and ten documents for two processes; two batches a step.
    "one_lora": ({}, {"training__embedding__batch_size": 5, "training__optimizer": {"lr": 1e-2, "accumulation": 2}}),
    "sequence": ({"experts": THREE, "router": {"type": "sparsegen", **CALM}}, ROUTED),
    "token": (
        {"experts": THREE, "router": {"type": "tsallis", "granularity": "token", **CALM}},
        {**ROUTED, "training__reranking__batch_size": 3},
    ),
    "loss_free": ({"experts": THREE, "router": {"type": "topk", "bias_rate": 0.02, **CALM}}, ROUTED),
    "surgery": ({"schedule": "mixed", "set": {"training.gradients.type": "pcgrad"}}, {}),
    "cached": (
        {
            "schedule": "mixed",
            "experts": THREE,
            "router": {"type": "softmax", "aux_loss_weight": 0.0, **CALM},
            "set": {"training.gradients.type": "famo"},
        },
        {**ROUTED, "training__embedding__gradcache_rows": 2},
    ),
    "listwise": (
        {},
        {
            "model__reranking": {"pooling": "mean", "head": "listwise"},
            "training__reranking__loss": {"type": "listwise"},
        },
    ),
    "feedback": (
        {"schedule": "mixed"},
        {"model__reranking": {"pooling": "mean", "head": "cosine"}, "training__reranking__loss": {"type": "ranknet"}},
    ),
}
DROPOUT = {"model__adapter": {"rank": 4, "alpha": 8.0, "dropout": 0.3}, "training__checkpoint_every": 2}


def content(make: Make, arm: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    short = {"training__embedding__steps": 3, "training__reranking__steps": 3, "training__probe__every": 4}
    return make(custom_arms={"mine": arm}, **{**short, **changes})


def work(job: dict[str, Any], root: Path, group: Group) -> None:
    """What each process does: train every case, and one of them with an interruption."""
    for name, settings in job.items():
        config = tiny.parsed(settings)
        # A rank's file of its weights shows that all ranks have the same.
        trained = tiny.train_arm(config, "mine", root / name, group=group, keep=(2,)).model
        save_file(
            {k: t.detach().contiguous() for k, t in trained.state().items()}, root / f"{name}-{group.rank}.safetensors"
        )
    config = tiny.parsed(job["dropout"])
    with contextlib.suppress(tiny.InterruptedRunError):
        tiny.train_arm(config, "mine", root / "cut", group=group, stop_after=4)
    torch.manual_seed(99)
    resumed = tiny.train_arm(config, "mine", root / "cut", group=group).model
    save_file({k: t.detach().contiguous() for k, t in resumed.state().items()}, root / f"cut-{group.rank}.safetensors")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, base: Path, data: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    """The folder that two processes have written, and what they were told to train."""

    def make(**changes: Any) -> dict[str, Any]:
        return tiny.experiment(base, data, **changes)

    root = tmp_path_factory.mktemp("parallel")
    job = {name: content(make, *case) for name, case in CASES.items()} | {"dropout": content(make, {}, DROPOUT)}
    (root / "job.json").write_text(json.dumps(job))
    environment = tiny.environment(root / "cache")
    environment |= {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(root)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return root, job


def states(root: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(root / f"{name}-{rank}.safetensors") for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Uneven shares, token and text routers with their balance, surgery, GradCache, lists."""
    root, job = results
    alone = tiny.train_arm(tiny.parsed(job[name]), "mine", tmp_path).model.state()
    first, second = states(root, name)
    start = tiny.arm_model(tiny.parsed(job[name]), "mine").state()
    assert alone.keys() == first.keys()
    for key, tensor in alone.items():
        assert torch.equal(first[key], second[key]), key
        # A bias that all scores of a group share has no gradient but rounding, and AdamW makes steps of it.
        if key != "head.projection.bias" and (moved := tensor - start[key]).any():
            assert tiny.relative(first[key] - start[key], moved) < 1e-2, key
    lines, expected = (tiny.lines(folder / "metrics.jsonl") for folder in (root / name, tmp_path))
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert line["tokens"] == other["tokens"]
        terms = ("task_loss", "load_balance", "router_z", "tsallis_entropy", "infonce", "gradient_cosine")
        for term in line.keys() & set(terms):
            assert line[term] == pytest.approx(other[term], rel=1e-3, abs=1e-5), term


@pytest.mark.slow
def test_only_one_process_writes_and_it_writes_everything(results: tuple[Path, dict[str, Any]]) -> None:
    root, _ = results
    folder = root / "sequence"
    for log in ("metrics.jsonl", "routing.jsonl", "gradient_conflicts.jsonl"):
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in tiny.lines(folder / log)]
        assert lines
        assert len({json.dumps(line) for line in lines}) == len(lines)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"at-2", "step-4"}


@pytest.mark.slow
def test_a_resumed_run_of_two_is_the_uninterrupted_one(results: tuple[Path, dict[str, Any]]) -> None:
    """With dropout: every process goes on with its own random numbers."""
    root, _ = results
    whole, cut = states(root, "dropout"), states(root, "cut")
    for one, other in zip(whole, cut, strict=True):
        for key, tensor in one.items():
            assert torch.equal(other[key], tensor), key
    alone = tiny.lines(root / "one_lora" / "metrics.jsonl")
    assert alone[0]["loss"] != tiny.lines(root / "dropout" / "metrics.jsonl")[0]["loss"]
    saved = load_file(next((root / "cut" / "checkpoints").glob("step-*")) / "rng.safetensors")["cpu"]
    assert len(saved) == PROCESSES
    assert not torch.equal(saved[0], saved[1])


def test_rows_are_shared_in_order_and_none_goes_without() -> None:
    batch = tiny.batch(tiny.ids([3, 9, 4, 5, 2]))
    parts = [Group(rank, 3).share(batch) for rank in range(3)]
    assert [len(part.input_ids) for part in parts] == [2, 2, 1]
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    with pytest.raises(UserError, match="a batch of 5 texts cannot be shared by 8 processes; start fewer"):
        Group(0, 8).share(batch)


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy, no collective: nothing that a run without torchrun could notice."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert connect(tiny.CPU) == (ALONE, tiny.CPU)
    batch, values = tiny.batch(tiny.ids([3, 9])), torch.randn(2, 3, requires_grad=True)
    assert ALONE.share(batch) is batch
    assert ALONE.part(values) is values
    assert ALONE.gather(values, 2) is values
    assert ALONE.means([values], [1.0])[0] is values
    assert (ALONE.total(0.1), ALONE.agree("a"), ALONE.is_main) == (0.1, "a", True)
    ALONE.add([values, None])
    ALONE.average([values])
    ALONE.wait()


if __name__ == "__main__":
    from torch import distributed

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    group, device = connect(torch.device("cpu"))
    assert (group, device.type) == (Group(rank, PROCESSES), "cpu")
    work(json.loads((folder / "job.json").read_text()), folder, group)
    distributed.destroy_process_group()
