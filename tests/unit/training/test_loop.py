"""One run: rates, averaging, clipping, logs, checkpoints, and what a loss that is no number does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from unimoer.config import ExperimentConfig, OptimizerConfig
from unimoer.errors import UserError
from unimoer.training import loop
from unimoer.training.loop import build_optimizer, learning_rate
from unimoer.training.state import latest_state
from unimoer.types import Task, TrainingMode

Make = Callable[..., dict[str, Any]]


def rates(schedule: str, total: int, warmup: float) -> list[float]:
    config = OptimizerConfig.model_validate({"schedule": schedule, "warmup_ratio": warmup})
    return [learning_rate(config, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_rise_to_the_peak_and_never_leave_their_range(schedule: str, total: int, warmup: float) -> None:
    found = rates(schedule, total, warmup)
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) == pytest.approx(1)
    peak = found.index(max(found))
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_rates_are_those_of_their_names() -> None:
    assert rates("linear", 10, 0.2) == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rates("constant", 5, 0.4) == pytest.approx([0.5, 1, 1, 1, 1])
    cosine = rates("cosine", 102, 0.02)
    assert cosine[2 + 50] == pytest.approx(0.5)
    assert cosine[-1] < 1e-3


def test_the_head_has_a_rate_of_its_own_and_embedding_no_head(base: Path) -> None:
    config = OptimizerConfig(lr=1e-3, head_lr=5e-3, betas=(0.8, 0.9), weight_decay=0.3)
    model = tiny.build(base)
    optimizer = build_optimizer(model, config, TrainingMode.JOINT_SINGLE)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 5e-3]
    assert all((group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.3) for group in optimizer.param_groups)
    counts = {
        mode: sum(len(group["params"]) for group in build_optimizer(model, config, mode).param_groups)
        for mode in TrainingMode
    }
    adapter = sum(1 for name in model.trainable() if not name.startswith("head."))
    assert counts == {
        TrainingMode.EMB_ONLY: adapter,
        TrainingMode.RANK_ONLY: adapter + 2,
        TrainingMode.JOINT_SINGLE: adapter + 2,
    }


@pytest.mark.parametrize("arm", ["emb_only", "rank_only"])
def test_a_specialist_learns(arm: str, experiment: Make, tmp_path: Path) -> None:
    """On words that queries and documents share; the head of the other task stays as it was."""
    reranking = {"steps": 60, "batch_size": 8, "negatives": 2, "random_until": 1.0}
    config = tiny.parsed(experiment(training__embedding__steps=30, training__reranking=reranking))
    trained = tiny.train_arm(config, arm, tmp_path)
    losses = [line["loss"] for line in tiny.lines(tmp_path / "metrics.jsonl")]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    fresh = tiny.build(Path(config.model.base), seed=1).trainable()
    moved = {name for name, p in trained.model.trainable().items() if not torch.equal(p, fresh[name])}
    heads = {"head.projection.weight", "head.projection.bias"}
    assert moved == (fresh.keys() - heads if arm == "emb_only" else fresh.keys())
    assert not trained.model.training


def test_accumulated_gradients_are_the_mean_over_batches(experiment: Make, tmp_path: Path) -> None:
    """And every batch counts in what is logged."""
    optimizer = {"lr": 1e-9, "accumulation": 3, "max_grad_norm": 1e9}
    config = tiny.parsed(experiment(training__optimizer=optimizer, training__reranking__steps=1))
    trained = tiny.train_arm(config, "rank_only", tmp_path)
    shared = tiny.context(config)
    mode = TrainingMode.RANK_ONLY
    sampler = tiny.build_samplers(shared, mode, 1)[Task.RERANKING]
    model = tiny.UnifiedModel(config.model, tiny.CPU, seed=1)
    collator = tiny.Collator(
        model.prompter,
        {name: domain.dataset for name, domain in shared.domains.items()},
        instructions=shared.instructions,
        padding="right",
        multiple=config.training.pad_to_multiple,
    )
    losses = []
    for _ in range(3):
        _, batch = loop.next_batch(sampler, collator, Task.RERANKING)
        loss, _ = loop.compute_loss(model, batch, config.training)
        (loss / 3).backward()
        losses.append(float(loss.detach()))
    for name, parameter in model.trainable().items():
        found = trained.model.trainable()[name].grad
        # A is not reached while B is zero; its gradient is exactly that.
        assert torch.allclose(found, parameter.grad, rtol=1e-5, atol=1e-7), name
    [line] = tiny.lines(tmp_path / "metrics.jsonl")
    assert line["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_gradients_are_clipped_and_their_norm_is_logged_before(experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment(training__optimizer={"lr": 1e-3, "max_grad_norm": 0.01}))
    trained = tiny.train_arm(config, "rank_only", tmp_path)
    gradients = [parameter.grad for parameter in trained.model.trainable().values()]
    assert float(torch.stack([gradient.norm() for gradient in gradients]).norm()) == pytest.approx(0.01, rel=1e-3)
    assert all(line["grad_norm"] > 0.01 for line in tiny.lines(tmp_path / "metrics.jsonl"))


def test_the_schedule_reaches_the_weights_and_the_log(experiment: Make, tmp_path: Path) -> None:
    """AdamW's first step moves whatever has a gradient by the rate of that step."""
    optimizer = {"lr": 0.01, "warmup_ratio": 0.5, "schedule": "linear", "weight_decay": 0.0}
    steps = {"training__reranking__steps": 8, "training__checkpoint_every": 1}
    config = tiny.parsed(experiment(training__optimizer=optimizer, **steps))
    with pytest.raises(tiny.InterruptedRunError):
        tiny.train_arm(config, "rank_only", tmp_path, stop_after=2)
    checkpoint = latest_state(tmp_path / "checkpoints")
    assert checkpoint is not None
    moved = [t.abs().max() for name, t in load_file(checkpoint / "adapter.safetensors").items() if name.endswith(".b")]
    assert float(max(moved)) == pytest.approx(0.01 / 4, rel=1e-3)
    tiny.train_arm(config, "rank_only", tmp_path)
    logged = [line["lr"] for line in tiny.lines(tmp_path / "metrics.jsonl")]
    assert logged == pytest.approx([0.01 * factor for factor in (0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25)])


def test_every_step_is_logged_with_its_terms(experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment(training__reranking__loss={"type": "bce"}))
    counters = tiny.train_arm(config, "joint_single", tmp_path).counters
    lines = tiny.lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["task"] for line in lines] == ["embedding", "reranking"] * 6
    assert [line["task_step"] for line in lines] == [step for step in range(1, 7) for _ in range(2)]
    assert {line["domain"] for line in lines} == set(tiny.THINGS)
    for line in lines:
        terms = {"embedding": {"infonce", "in_batch_accuracy", "positive_cosine", "masked_negatives"}}
        terms["reranking"] = {"bce", "group_accuracy", "score_spread"}
        assert terms[line["task"]] | {"loss", "lr", "grad_norm", "tokens", "padding", "seconds"} <= line.keys()
        assert 0 <= line["padding"] < 1
    assert counters.tokens == sum(line["tokens"] for line in lines)
    assert counters.task_steps == {"embedding": 6, "reranking": 6}
    assert counters.computed_tokens > counters.tokens


def test_one_checkpoint_is_kept_and_none_is_made_of_the_last_step(experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment(training__checkpoint_every=3))
    tiny.train_arm(config, "joint_single", tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-9"]


def finite(folder: Path) -> bool:
    checkpoint = latest_state(folder / "checkpoints")
    assert checkpoint is not None
    tensors = [*load_file(checkpoint / "adapter.safetensors").values()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def diverging(experiment: Make) -> ExperimentConfig:
    optimizer = {"lr": 1e30, "warmup_ratio": 0.0, "max_grad_norm": 1e9}
    return tiny.parsed(experiment(training__optimizer=optimizer, training__checkpoint_every=1))


@pytest.mark.parametrize("arm", ["emb_only", "rank_only", "joint_single"])
def test_a_loss_that_is_no_number_stops_the_run(arm: str, experiment: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf|-inf) at step \d+ \((kitchen|garden)\); .*lr") as caught:
        tiny.train_arm(diverging(experiment), arm, tmp_path)
    assert "\n" not in str(caught.value)
    assert finite(tmp_path)
    steps = [line["step"] for line in tiny.lines(tmp_path / "metrics.jsonl")]
    checkpoint = latest_state(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"step-{steps[-1]}"


@pytest.mark.parametrize("bad_step", [3, 6])
def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    bad_step: int, experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss itself is finite, in the middle of a run or at its very last step."""
    real, calls = loop.compute_loss, []

    def compute_loss(model: Any, batch: Any, config: Any) -> Any:
        loss, terms = real(model, batch, config)
        calls.append(loss)
        # The root's slope at zero is infinite, and infinity times zero is no number.
        return (loss + (loss * 0).sqrt() if len(calls) == bad_step else loss), terms

    monkeypatch.setattr(loop, "compute_loss", compute_loss)
    config = tiny.parsed(experiment(training__checkpoint_every=1))
    with pytest.raises(UserError, match=rf"gradient.* at step {bad_step} "):
        tiny.train_arm(config, "rank_only", tmp_path)
    checkpoint = latest_state(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"step-{bad_step - 1}"
    assert finite(tmp_path)
