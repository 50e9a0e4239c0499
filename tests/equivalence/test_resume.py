"""A run that was stopped and goes on is bit for bit the run that was not stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from unimoer.config import StudyConfig
from unimoer.errors import UserError
from unimoer.training.state import latest_state

Make = Callable[..., dict[str, Any]]
ARMS = ("emb_only", "rank_only", "joint_single")
THREE = {"embedding": 1, "reranking": 1, "shared": 2}
NOISE = {"noise_epsilon": 0.2, "logit_noise": 0.3, "expert_dropout": 0.3, "weight_floor": 0.05}
ROUTED: dict[str, dict[str, Any]] = {
    "sparse": {"experts": THREE, "router": {"type": "sparsegen", **NOISE}},
    "loss_free": {
        "experts": THREE,
        "router": {"type": "topk", "granularity": "token", "bias_rate": 0.02, **NOISE},
    },
    "mixed_moe": {
        "schedule": "mixed",
        "experts": THREE,
        "router": {"type": "softmax", **NOISE},
        "set": {"training.gradients.type": "famo"},
    },
    "staged_moe": {"schedule": "staged", "experts": THREE, "router": {"type": "softmax", **NOISE}},
}
"""Everything that has a state: random numbers, usage of the other task, biases, learned weights of the losses."""


def with_dropout(experiment: Make, **changes: Any) -> StudyConfig:
    """Dropout, accumulation, hard negatives that change from random to mined, a probe: all that has a state."""
    settings: dict[str, Any] = {
        "model__adapter": {"rank": 4, "alpha": 8.0, "dropout": 0.3},
        "training__optimizer": {"lr": 1e-2, "accumulation": 2, "head_lr": 3e-3},
        "training__checkpoint_every": 3,
        "training__embedding__steps": 7,
        "training__reranking__steps": 7,
        "training__probe": {"every": 2, "batch_size": 4},
    }
    return tiny.parsed(experiment(**(settings | changes)))


def records(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in tiny.lines(path)]


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint: tensors as bytes, and the position without its wall time."""
    checkpoint = latest_state(folder / "checkpoints")
    assert checkpoint is not None
    content: dict[str, Any] = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    assert {"adapter.safetensors", "optimizer.safetensors", "rng.safetensors"} <= content.keys()
    position = json.loads((checkpoint / "state.json").read_text())
    del position["plain"]["counters"]["seconds"]
    return content | {"name": checkpoint.name, "position": position}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_is_the_uninterrupted_one(arm: str, stop: int, experiment: Make, tmp_path: Path) -> None:
    """Stopped before its first checkpoint, and between two of them, with half a line in its logs."""
    config = with_dropout(experiment)
    whole = tiny.train_arm(config, arm, tmp_path / "whole")
    with pytest.raises(tiny.InterruptedRunError):
        tiny.train_arm(config, arm, tmp_path / "cut", stop_after=stop)
    logs = ["metrics.jsonl", *(["gradient_conflicts.jsonl"] if arm == "joint_single" else [])]
    for log in logs:
        with (tmp_path / "cut" / log).open("a") as file:
            file.write('{"step": 3, "loss": 0.')
    torch.manual_seed(12345)
    resumed = tiny.train_arm(config, arm, tmp_path / "cut")

    for name, parameter in whole.model.trainable().items():
        assert torch.equal(resumed.model.trainable()[name], parameter), name
    assert state(tmp_path / "cut") == state(tmp_path / "whole")
    for log in logs:
        assert records(tmp_path / "cut" / log) == records(tmp_path / "whole" / log)
        assert records(tmp_path / "whole" / log)
    for name in ("step", "task_steps", "tokens", "computed_tokens"):
        assert getattr(resumed.counters, name) == getattr(whole.counters, name)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == [state(tmp_path / "whole")["name"]]


def agree(config: StudyConfig, arm: str, folder: Path, stops: tuple[int, ...]) -> None:
    """Interrupted at these steps, the run ends in the same tensors and logs."""
    whole = tiny.train_arm(config, arm, folder / "whole")
    for stop in stops:
        with pytest.raises(tiny.InterruptedRunError):
            tiny.train_arm(config, arm, folder / "cut", stop_after=stop)
        torch.manual_seed(12345)
    resumed = tiny.train_arm(config, arm, folder / "cut")
    for name, tensor in whole.model.state().items():
        assert torch.equal(resumed.model.state()[name], tensor), name
    assert state(folder / "cut") == state(folder / "whole")
    for log in (folder / "whole").glob("*.jsonl"):
        assert records(folder / "cut" / log.name) == records(log), log.name


def short(experiment: Make, embedding: int = 4, **changes: Any) -> StudyConfig:
    """A few steps, a checkpoint after each, and no probe: it has nothing of its own to resume in these schedules."""
    settings = {"training__embedding__steps": embedding, "training__reranking__steps": 4, "training__probe__every": 0}
    return with_dropout(experiment, training__checkpoint_every=1, **settings, **changes)


@pytest.mark.parametrize("arm", list(ROUTED))
def test_a_resumed_routed_run_is_the_uninterrupted_one(arm: str, experiment: Make, tmp_path: Path) -> None:
    """`staged_moe` goes on right at the boundary of its stages, where moments are thrown away."""
    adapter = {"rank": 16, "alpha": 16.0, "dropout": 0.3}
    config = short(experiment, model__adapter=adapter, custom_arms={arm: ROUTED[arm]}, training__routing_every=2)
    agree(config, arm, tmp_path, (3,) if arm == "mixed_moe" else (5,))
    assert (tmp_path / "whole" / "routing.jsonl").read_text()


def test_a_resumed_mixed_run_is_the_uninterrupted_one(experiment: Make, tmp_path: Path) -> None:
    """With more steps of one task: some have it alone, and leave the learned weights as they are."""
    agree(short(experiment, embedding=6, training__gradients__type="gradnorm"), "joint_mixed", tmp_path, (2, 5))


def test_a_resumed_staged_run_is_the_uninterrupted_one(experiment: Make, tmp_path: Path) -> None:
    """Stopped again and again, before, at and after the boundary."""
    agree(short(experiment), "joint_staged", tmp_path, (4, 5, 6))


@pytest.mark.parametrize(
    ("arm", "head", "loss"), [("joint_single", "listwise", "listwise"), ("joint_mixed", "cosine", "ranknet")]
)
def test_a_resumed_run_on_lists_is_the_uninterrupted_one(
    arm: str, head: str, loss: str, experiment: Make, tmp_path: Path
) -> None:
    """A probe among them."""
    config = with_dropout(
        experiment,
        model__reranking={"pooling": "mean", "head": head},
        training__reranking__loss={"type": loss},
        training__embedding__steps=4,
        training__reranking__steps=4,
    )
    agree(config, arm, tmp_path, (2,))


def test_a_run_may_be_stopped_again_and_again(experiment: Make, tmp_path: Path) -> None:
    config = with_dropout(experiment, training__checkpoint_every=1)
    whole = tiny.train_arm(config, "joint_single", tmp_path / "whole")
    for stop in (1, 2, 2, 5, 9):
        with pytest.raises(tiny.InterruptedRunError):
            tiny.train_arm(config, "joint_single", tmp_path / "cut", stop_after=stop + 1)
    resumed = tiny.train_arm(config, "joint_single", tmp_path / "cut")
    for name, parameter in whole.model.trainable().items():
        assert torch.equal(resumed.model.trainable()[name], parameter), name
    assert records(tmp_path / "cut" / "metrics.jsonl") == records(tmp_path / "whole" / "metrics.jsonl")


def test_the_checkpoint_matters(experiment: Make, tmp_path: Path) -> None:
    """Without its random numbers, dropout would differ: the test above can fail."""
    config = with_dropout(experiment)
    whole = tiny.train_arm(config, "rank_only", tmp_path / "whole")
    with pytest.raises(tiny.InterruptedRunError):
        tiny.train_arm(config, "rank_only", tmp_path / "cut", stop_after=4)
    checkpoint = latest_state(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None
    other = torch.Generator().manual_seed(1).get_state()
    save_file({"cpu": other.unsqueeze(0)}, checkpoint / "rng.safetensors")
    resumed = tiny.train_arm(config, "rank_only", tmp_path / "cut")
    assert any(not torch.equal(resumed.model.trainable()[n], p) for n, p in whole.model.trainable().items())


def test_a_damaged_checkpoint_is_one_line(experiment: Make, tmp_path: Path) -> None:
    config = short(experiment, model__adapter={"rank": 16, "alpha": 16.0}, custom_arms=ROUTED)
    arm = "mixed_moe"
    with pytest.raises(tiny.InterruptedRunError):
        tiny.train_arm(config, arm, tmp_path, stop_after=3)
    checkpoint = latest_state(tmp_path / "checkpoints")
    assert checkpoint is not None
    tensors = {"adapter", "optimizer", "rng", "routing", "gradients"}
    assert {path.name for path in checkpoint.iterdir()} == {f"{name}.safetensors" for name in tensors} | {"state.json"}
    for name in (path.name for path in list(checkpoint.iterdir())):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=name):
            tiny.train_arm(config, arm, tmp_path)
        (checkpoint / name).unlink()
        with pytest.raises(UserError, match=name):
            tiny.train_arm(config, arm, tmp_path)
        (checkpoint / name).write_bytes(whole)
    tiny.train_arm(config, arm, tmp_path)


def kept(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("checkpoints/at-*/adapter.safetensors")}


@pytest.mark.parametrize(("arm", "stops"), [("joint_single", (7, 8)), ("joint_mixed", (4,)), ("joint_staged", (9,))])
def test_models_on_the_way_are_kept_and_are_those_of_the_uninterrupted_run(
    arm: str, stops: tuple[int, ...], experiment: Make, tmp_path: Path
) -> None:
    """Stopped before a model was kept and right after; later checkpoints leave it, and keeping it changes nothing."""
    config = with_dropout(experiment, training__embedding__steps=6, training__reranking__steps=4)
    counts = (3, 5)
    plain = tiny.train_arm(config, arm, tmp_path / "plain")
    whole = tiny.train_arm(config, arm, tmp_path / "whole", keep=counts)
    for stop in stops:
        with pytest.raises(tiny.InterruptedRunError):
            tiny.train_arm(config, arm, tmp_path / "cut", stop_after=stop, keep=counts)
    resumed = tiny.train_arm(config, arm, tmp_path / "cut", keep=counts)
    for name, tensor in plain.model.state().items():
        assert torch.equal(whole.model.state()[name], tensor), name
        assert torch.equal(resumed.model.state()[name], tensor), name
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")
    assert kept(tmp_path / "whole").keys() == {"at-3", "at-5"}


def test_a_kept_model_is_that_of_its_task_step(experiment: Make, tmp_path: Path) -> None:
    """After three steps of each task, which are six of the run; a task with fewer counts as done at its last."""
    config = with_dropout(experiment, training__checkpoint_every=1, training__reranking__steps=4)
    with pytest.raises(tiny.InterruptedRunError):
        tiny.train_arm(config, "joint_single", tmp_path / "cut", stop_after=7)
    checkpoint = latest_state(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None
    lines = tiny.lines(tmp_path / "cut" / "metrics.jsonl")
    done = {task: [line["step"] for line in lines if line["task"] == task] for task in ("embedding", "reranking")}
    assert checkpoint.name == "step-6"
    count = len([step for step in done["reranking"] if step <= 6])
    assert count < len([step for step in done["embedding"] if step <= 6])
    tiny.train_arm(config, "joint_single", tmp_path / "whole", keep=(count, 7))
    last = max(done["embedding"][count - 1], done["reranking"][count - 1])
    with pytest.raises(tiny.InterruptedRunError):
        tiny.train_arm(config, "joint_single", tmp_path / "twin", stop_after=last + 1)
    twin = latest_state(tmp_path / "twin" / "checkpoints")
    assert twin is not None
    assert twin.name == f"step-{last}"
    found = kept(tmp_path / "whole")
    assert found[f"at-{count}"] == (twin / "adapter.safetensors").read_bytes()
    model = tiny.train_arm(config, "joint_single", tmp_path / "whole").model
    saved = load_file(tmp_path / "whole" / "checkpoints" / "at-7" / "adapter.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state().items())


def test_similarity_has_its_pilots_wherever_it_is_kept_and_trains_without(experiment: Make, tmp_path: Path) -> None:
    arm = {"experts": {"embedding": 1, "reranking": 1}, "router": {"type": "similarity", "pilot_queries": 6}}
    config = short(experiment, custom_arms={"mine": arm})
    plain = tiny.train_arm(config, "mine", tmp_path / "plain").model
    whole = tiny.train_arm(config, "mine", tmp_path / "whole", keep=(2,)).model
    saved = load_file(tmp_path / "whole" / "checkpoints" / "at-2" / "adapter.safetensors")
    assert len(saved["pilots.owners"]) >= 6
    assert len(whole.pilots.owners) >= 6
    assert all(torch.equal(whole.state()[name], tensor) for name, tensor in plain.state().items())
