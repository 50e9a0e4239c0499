"""Checkpoints of a half-done run on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from unimoer.config import OptimizerConfig
from unimoer.errors import UserError
from unimoer.model.unified import UnifiedModel
from unimoer.training.optimizer import Optimizer
from unimoer.training.parallel import Group
from unimoer.training.state import (
    Adapter,
    Counters,
    RandomNumbers,
    Stateful,
    drop_states,
    latest_state,
    load_state,
    save_state,
)
from unimoer.types import Task


class Thing:
    """Whatever state it is given."""

    def __init__(self, **state: Any) -> None:
        self.state: Mapping[str, Any] = state

    def state_dict(self) -> Mapping[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state


def parts(model: UnifiedModel, task: Task) -> dict[str, Stateful]:
    return {"adapter": Adapter(model), "optimizer": Optimizer(model, OptimizerConfig(), (task,))}


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert latest_state(tmp_path) is None
    assert latest_state(tmp_path / "nowhere") is None
    for name in ("step-9", "step-10", ".step-11.abc", "step-12.tmp", "final", "at-50"):
        (tmp_path / name).mkdir()
    assert latest_state(tmp_path) == tmp_path / "step-10"


def test_tensors_and_plain_numbers_of_anything_come_back_as_they_were(tmp_path: Path) -> None:
    mixed = Thing(one=torch.arange(3), text="a", nested={"list": [1, 2.5, None]}, big=2**127)
    plain, empty = Thing(number=3), Thing()
    save_state(tmp_path, 4, {"mixed": mixed, "plain": plain, "empty": empty})
    assert {path.name for path in (tmp_path / "step-4").iterdir()} == {"mixed.safetensors", "state.json"}
    loaded = {"mixed": Thing(old=1), "plain": Thing(), "empty": Thing(old=1)}
    load_state(tmp_path / "step-4", loaded)
    assert torch.equal(loaded["mixed"].state["one"], torch.arange(3))
    assert {**loaded["mixed"].state, "one": None} == {**mixed.state, "one": None}
    assert loaded["plain"].state == {"number": 3}
    assert loaded["empty"].state == {}


def test_a_part_that_was_not_saved_is_named(tmp_path: Path) -> None:
    save_state(tmp_path, 4, {"one": Thing(a=1)})
    with pytest.raises(UserError, match=r"step-4.state\.json: has no state of 'other'; remove"):
        load_state(tmp_path / "step-4", {"one": Thing(), "other": Thing()})


def test_a_moved_optimizer_goes_on_where_it_was(base: Path, tmp_path: Path) -> None:
    """Also the specialist's, which holds no moments of the head."""
    model, twin = (tiny.build(base, noise=0.1) for _ in range(2))
    own, others = (parts(m, Task.EMBEDDING) for m in (model, twin))
    batch = tiny.batch(tiny.ids([5, 9]))

    def step(one: UnifiedModel, optimizer: Any) -> None:
        optimizer.adamw.zero_grad()
        one.embed(batch)[0, :5].sum().backward()
        optimizer.step()

    for _ in range(3):
        step(model, own["optimizer"])
    counters, found = Counters(3, {"embedding": 3}, 42, 64, 1.5), Counters()
    save_state(tmp_path, 3, {**own, "counters": counters})
    load_state(tmp_path / "step-3", {**others, "counters": found})
    assert found == counters
    step(model, own["optimizer"])
    step(twin, others["optimizer"])
    for name, parameter in model.trainable().items():
        assert torch.equal(twin.trainable()[name], parameter), name


def test_older_checkpoints_go_when_a_newer_one_is_whole(tmp_path: Path) -> None:
    """Models that are kept for good, and what is not ours, stay."""
    (tmp_path / "at-2").mkdir()
    for step in (2, 4, 6):
        save_state(tmp_path, step, {"thing": Thing(a=step)})
        assert {path.name for path in tmp_path.iterdir()} == {"at-2", f"step-{step}"}
    drop_states(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["at-2"]


def test_leftovers_of_a_killed_save_are_cleared_by_the_next(tmp_path: Path) -> None:
    """Each holds parameters and moments: many kills would fill the disk."""
    for name in (".step-2.1234abcd.tmp", ".at-2.1234abcd.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.safetensors").write_bytes(b"half")
    save_state(tmp_path, 4, {"thing": Thing(a=1)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


def test_a_checkpoint_of_another_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    save_state(tmp_path, 2, parts(tiny.build(base), Task.RERANKING))
    other = tiny.build(base, adapter={"rank": 2, "alpha": 2.0})
    with pytest.raises(UserError, match=r"step-2: adapter: .*the model needs"):
        load_state(tmp_path / "step-2", parts(other, Task.RERANKING))


def test_random_numbers_of_as_many_processes_as_there_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    numbers = RandomNumbers(tiny.CPU)
    save_state(tmp_path, 1, {"rng": numbers})
    expected = torch.rand(4)
    load_state(tmp_path / "step-1", {"rng": numbers})
    assert torch.equal(torch.rand(4), expected)
    assert json.loads((tmp_path / "step-1" / "state.json").read_text())["tensors"] == ["rng"]
    with pytest.raises(UserError, match="rng: was saved by 1 processes, not 2; start as many again"):
        load_state(tmp_path / "step-1", {"rng": RandomNumbers(tiny.CPU, Group(0, 2))})
