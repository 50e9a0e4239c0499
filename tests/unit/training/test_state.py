"""Checkpoints of a half-done run on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from unimoer.config import OptimizerConfig
from unimoer.errors import UserError
from unimoer.model.unified import UnifiedModel
from unimoer.training.loop import build_optimizer
from unimoer.training.multitask import Combiner
from unimoer.training.routing import RoutingLosses
from unimoer.training.state import Counters, latest_state, load_state, save_state
from unimoer.types import TrainingMode


def save(folder: Path, model: UnifiedModel, optimizer: torch.optim.Optimizer, counters: Counters) -> None:
    save_state(folder, model, optimizer, {}, RoutingLosses(None), Combiner({}), counters)


def load(folder: Path, model: UnifiedModel, optimizer: torch.optim.Optimizer) -> Counters:
    return load_state(folder, model, optimizer, {}, RoutingLosses(None), Combiner({}))


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert latest_state(tmp_path) is None
    assert latest_state(tmp_path / "nowhere") is None
    for name in ("step-9", "step-10", ".step-11.abc", "step-12.tmp", "final"):
        (tmp_path / name).mkdir()
    assert latest_state(tmp_path) == tmp_path / "step-10"


def test_a_moved_optimizer_goes_on_where_it_was(base: Path, tmp_path: Path) -> None:
    """Also the specialist's, which holds no moments of the head."""
    model, twin = (tiny.build(base, noise=0.1) for _ in range(2))
    optimizers = [build_optimizer(m, OptimizerConfig(), TrainingMode.EMB_ONLY) for m in (model, twin)]
    batch = tiny.batch(tiny.ids([5, 9]))

    def step(index: int, optimizer: torch.optim.Optimizer) -> None:
        one = (model, twin)[index]
        optimizer.zero_grad()
        one.embed(batch)[0, :5].sum().backward()
        optimizer.step()

    for _ in range(3):
        step(0, optimizers[0])
    counters = Counters(3, {"embedding": 3}, 42, 64, 1.5)
    save(tmp_path, model, optimizers[0], counters)
    found = latest_state(tmp_path)
    assert found is not None
    assert load(found, twin, optimizers[1]) == counters
    for index in (0, 1):
        step(index, optimizers[index])
    for name, parameter in model.trainable().items():
        assert torch.equal(twin.trainable()[name], parameter), name


def test_older_checkpoints_go_when_a_newer_one_is_whole(base: Path, tmp_path: Path) -> None:
    model = tiny.build(base)
    optimizer = build_optimizer(model, OptimizerConfig(), TrainingMode.RANK_ONLY)
    for step in (2, 4, 6):
        save(tmp_path, model, optimizer, Counters(step))
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step}"]


def test_leftovers_of_a_killed_save_are_cleared_by_the_next(base: Path, tmp_path: Path) -> None:
    """Each holds parameters and moments: many kills would fill the disk."""
    model = tiny.build(base)
    optimizer = build_optimizer(model, OptimizerConfig(), TrainingMode.RANK_ONLY)
    (tmp_path / ".step-2.k1lled").mkdir()
    (tmp_path / ".step-2.k1lled" / "adapter.safetensors").write_bytes(b"half")
    save(tmp_path, model, optimizer, Counters(4))
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


def test_a_checkpoint_of_another_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    model = tiny.build(base)
    optimizer = build_optimizer(model, OptimizerConfig(), TrainingMode.RANK_ONLY)
    save(tmp_path, model, optimizer, Counters(2))
    other = tiny.build(base, adapter={"rank": 2, "alpha": 2.0})
    with pytest.raises(UserError, match="the model needs"):
        load(tmp_path / "step-2", other, build_optimizer(other, OptimizerConfig(), TrainingMode.RANK_ONLY))
