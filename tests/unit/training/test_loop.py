"""One run: rates, averaging, clipping, logs, checkpoints, and what a loss that is no number does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from unimoer.config import OptimizerConfig, StudyConfig
from unimoer.errors import UserError
from unimoer.training import multitask
from unimoer.training import step as one_step
from unimoer.training.objectives import compute_loss
from unimoer.training.optimizer import Optimizer
from unimoer.training.schedule import Step, learning_rate
from unimoer.training.setup import build_collator, build_samplers
from unimoer.training.state import latest_state
from unimoer.training.step import next_batch
from unimoer.types import Task

Make = Callable[..., dict[str, Any]]


def rates(schedule: str, total: int, warmup: float) -> list[float]:
    config = OptimizerConfig.model_validate({"schedule": schedule, "warmup_ratio": warmup})
    return [learning_rate(config, Step((), place, total)) for place in range(total)]


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
    groups = Optimizer(model, config, tuple(Task)).adamw.param_groups
    assert [group["lr"] for group in groups] == [1e-3, 5e-3]
    assert all((group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.3) for group in groups)
    adapter = sum(1 for name in model.trainable() if not name.startswith("head."))
    assert len(Optimizer(model, config, (Task.EMBEDDING,)).parameters) == adapter
    for tasks in ((Task.RERANKING,), tuple(Task)):
        assert len(Optimizer(model, config, tasks).parameters) == adapter + 2


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
    spec, domains = tiny.train_spec(config, "rank_only"), tiny.domains(config)
    sampler = build_samplers(spec, domains)[Task.RERANKING]
    model = tiny.UnifiedModel(config.model, tiny.CPU, seed=1)
    collator = build_collator(spec, model, domains)
    losses = []
    for _ in range(3):
        _, batch = next_batch(sampler, collator, Task.RERANKING)
        loss, _ = compute_loss(model, batch, config.training)
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
    moved = [t.abs().max() for name, t in load_file(checkpoint / "adapter.safetensors").items() if ".b." in name]
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


def diverging(experiment: Make) -> StudyConfig:
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
    real, calls = one_step.compute_loss, []

    def compute_loss(*arguments: Any, **options: Any) -> Any:
        loss, terms = real(*arguments, **options)
        calls.append(loss)
        # The root's slope at zero is infinite, and infinity times zero is no number.
        return (loss + (loss * 0).sqrt() if len(calls) == bad_step else loss), terms

    monkeypatch.setattr(one_step, "compute_loss", compute_loss)
    config = tiny.parsed(experiment(training__checkpoint_every=1))
    with pytest.raises(UserError, match=rf"gradient.* at step {bad_step} "):
        tiny.train_arm(config, "rank_only", tmp_path)
    checkpoint = latest_state(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"step-{bad_step - 1}"
    assert finite(tmp_path)


def test_stages_have_rates_of_their_own_and_the_second_starts_without_momentum(
    experiment: Make, tmp_path: Path
) -> None:
    """AdamW's first step moves a parameter by the rate exactly, if its moments hold nothing of the first stage."""
    config = tiny.parsed(
        experiment(
            training__staged={"stage1_lr": 1e-2, "stage2_lr": 1e-4},
            training__optimizer={"lr": 0.5, "warmup_ratio": 0.0, "schedule": "linear", "weight_decay": 0.0},
            training__checkpoint_every=1,
            training__probe__every=0,
        )
    )
    saved = {}
    for stop in (7, 8):
        with pytest.raises(tiny.InterruptedRunError):
            tiny.train_arm(config, "joint_staged", tmp_path, stop_after=stop)
        checkpoint = latest_state(tmp_path / "checkpoints")
        assert checkpoint is not None
        # A run is stopped before its step is saved.
        assert checkpoint.name == f"step-{stop - 1}"
        saved[stop - 1] = load_file(checkpoint / "adapter.safetensors")
    moved = [(saved[7][name] - saved[6][name]).abs().max() for name in saved[6] if ".b." in name]
    assert float(max(moved)) == pytest.approx(1e-4, rel=1e-2)
    tiny.train_arm(config, "joint_staged", tmp_path)
    lines = tiny.lines(tmp_path / "metrics.jsonl")
    assert [line["task"] for line in lines] == ["embedding"] * 6 + ["reranking"] * 6
    falling = [1, 1, 0.8, 0.6, 0.4, 0.2]
    expected = [1e-2 * factor for factor in falling] + [1e-4 * factor for factor in falling]
    assert [line["lr"] for line in lines] == pytest.approx(expected)


@pytest.mark.parametrize("gradients", ["sum", "gradnorm"])
def test_a_mixed_step_is_the_gradient_of_the_weighted_sum(gradients: str, experiment: Make, tmp_path: Path) -> None:
    """Taken in one go or task by task; GradNorm's own weights begin at 1."""
    steps = {"training__embedding__steps": 1, "training__reranking__steps": 1, "training__ranking_weight": 0.3}
    optimizer = {"lr": 1e-9, "max_grad_norm": 1e9, "accumulation": 2}
    content = experiment(training__optimizer=optimizer, training__gradients__type=gradients, **steps)
    config = tiny.parsed(content)
    trained = tiny.train_arm(config, "joint_mixed", tmp_path).model
    spec, domains = tiny.train_spec(config, "joint_mixed"), tiny.domains(config)
    samplers = build_samplers(spec, domains)
    model = tiny.arm_model(config, "joint_mixed")
    collator = build_collator(spec, model, domains)
    for task, weight in ((Task.EMBEDDING, 1.0), (Task.RERANKING, 0.3)):
        for _ in range(2):
            loss, _ = compute_loss(model, next_batch(samplers[task], collator, task)[1], config.training)
            (loss * weight / 2).backward()
    for name, parameter in model.trainable().items():
        # A is not reached while B is zero.
        if ".a." not in name:
            assert tiny.relative(trained.trainable()[name].grad, parameter.grad) < 1e-5, name


@pytest.mark.parametrize("rows", [None, 3])
def test_famo_sees_no_progress_where_nothing_moved(
    rows: int | None, experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, with dropout, jitter and router losses; and that it looks can be told from its logits later."""
    falls: list[Tensor] = []
    real = multitask.FAMO._descend

    def descend(self: multitask.FAMO, slopes: Tensor) -> None:
        falls.append(slopes.clone())
        real(self, slopes)

    monkeypatch.setattr(multitask.FAMO, "_descend", descend)
    noise = {"noise_epsilon": 0.2, "logit_noise": 0.3, "expert_dropout": 0.3, "z_loss_weight": 0.5}
    arm = {"schedule": "mixed", "experts": {"a": 1, "b": 1}, "router": {"type": "topk", "bias_rate": 0.1, **noise}}
    arm["set"] = {"training.gradients": {"type": "famo"}}
    changes = {"model__adapter": {"rank": 12, "alpha": 12.0, "dropout": 0.3}, "training__ranking_weight": 0.3}
    changes |= {"training__optimizer": {"lr": 1e-2, "accumulation": 2, "warmup_ratio": 0.0}}
    config = tiny.parsed(experiment(custom_arms={"mine": arm}, training__embedding__gradcache_rows=rows, **changes))
    with monkeypatch.context() as still:
        still.setattr(Optimizer, "step", lambda self: None)
        tiny.train_arm(config, "mine", tmp_path / "still")
    assert len(falls) == 6
    assert all(torch.equal(fall, torch.zeros(2, dtype=torch.float64)) for fall in falls)
    falls.clear()
    tiny.train_arm(config, "mine", tmp_path / "moving")
    assert all(fall.all() for fall in falls)


def test_recomputing_losses_draws_no_random_numbers(experiment: Make, tmp_path: Path) -> None:
    """A FAMO that never changes its weights trains as GradNorm at equal weights would: same masks in every step."""
    changes = {"model__adapter": {"rank": 4, "alpha": 8.0, "dropout": 0.5}, "training__optimizer": {"lr": 1e-9}}
    losses = {}
    for method in ("famo", "pcgrad"):
        config = tiny.parsed(experiment(training__gradients={"type": method}, **changes))
        tiny.train_arm(config, "joint_mixed", tmp_path / method)
        losses[method] = [line["loss"] for line in tiny.lines(tmp_path / method / "metrics.jsonl")]
    assert losses["famo"] == pytest.approx(losses["pcgrad"], rel=1e-5)


@pytest.mark.parametrize(("arm", "weight"), [("joint_mixed", 0.3), ("joint_single", 1.0)])
def test_the_weight_of_a_task_is_that_of_the_mode(arm: str, weight: float, experiment: Make, tmp_path: Path) -> None:
    """Also in a mixed run's step that has this task alone; alternating tasks have no common loss to be weighed in."""
    norms = []
    for value in (1.0, 0.3):
        steps = {"training__embedding__steps": 1, "training__reranking__steps": 2, "training__probe__every": 0}
        config = tiny.parsed(experiment(training__ranking_weight=value, **steps))
        tiny.train_arm(config, arm, tmp_path / str(value))
        [first, *_] = (line for line in tiny.lines(tmp_path / str(value) / "metrics.jsonl"))
        assert first["task"] == "reranking"
        norms.append(first["grad_norm"])
    assert norms[1] / norms[0] == pytest.approx(weight, rel=1e-5)


def test_a_mixed_step_is_logged_once_for_each_task(experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment(training__reranking__steps=3, training__gradients__type="cagrad"))
    counters = tiny.train_arm(config, "joint_mixed", tmp_path).counters
    lines = tiny.lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["task"]) for line in lines] == [
        (step, task)
        for step in range(1, 7)
        for task in ("embedding", "reranking")
        if task == "embedding" or not step % 2
    ]
    assert counters.task_steps == {"embedding": 6, "reranking": 3}
    assert counters.step == 6
    assert counters.tokens == sum(line["tokens"] for line in lines)
    for line in lines:
        assert ("gradient_cosine" in line) == (line["step"] % 2 == 0)
    loss = [line["loss"] for line in lines if line["task"] == "embedding"]
    assert len(set(loss)) == 6


def test_a_routed_run_logs_its_routers_and_pays_for_them(experiment: Make, tmp_path: Path) -> None:
    adapter = {"rank": 12, "alpha": 12.0}
    config = tiny.parsed(experiment(model__adapter=adapter, training__routing_every=4, training__probe__every=0))
    trained = tiny.train_arm(config, "joint_moe", tmp_path)
    lines = tiny.lines(tmp_path / "routing.jsonl")
    # Steps 1 and 4 of each task, which are 1, 7 and 2, 8 of the run; three layers.
    assert sorted({(line["step"], line["task"]) for line in lines}) == [
        (1, "embedding"),
        (2, "reranking"),
        (7, "embedding"),
        (8, "reranking"),
    ]
    assert len(lines) == 12
    assert {line["router"] for line in lines} == {"0", "1", "2"}
    assert all(sum(line["weights"]) == pytest.approx(1) for line in lines)
    metrics = tiny.lines(tmp_path / "metrics.jsonl")
    # There is no balance until the other task has been seen.
    assert ["load_balance" in line for line in metrics] == [False, *[True] * 11]
    assert all(line["router_z"] > 0 for line in metrics)
    fresh = tiny.arm_model(config, "joint_moe").state()
    routers = {name for name in fresh if ".routers." in name}
    assert routers
    assert all(not torch.equal(trained.model.state()[name], fresh[name]) for name in routers)


@pytest.mark.parametrize("arm", ["joint_single", "hard_switch"])
def test_a_run_that_weighs_nothing_has_no_routing_to_tell(arm: str, experiment: Make, tmp_path: Path) -> None:
    content = experiment(model__adapter={"rank": 8}, training__probe__every=0)
    tiny.train_arm(tiny.parsed(content), arm, tmp_path)
    path = tmp_path / "routing.jsonl"
    assert path.exists() == (arm == "hard_switch")
    assert not path.exists() or not path.read_text()


def test_loss_free_balancing_moves_the_bias_by_its_rate_every_step(experiment: Make, tmp_path: Path) -> None:
    router = {"type": "topk", "k": 1, "bias_rate": 0.01, "aux_loss_weight": 0.0, "z_loss_weight": 0.0}
    arm = {"experts": {"a": 1, "b": 1, "c": 2}, "router": router}
    content = experiment(model__adapter={"rank": 12}, custom_arms={"free": arm}, training__probe__every=0)
    model = tiny.train_arm(tiny.parsed(content), "free", tmp_path).model
    biases = [tensor for name, tensor in model.state().items() if name.endswith(".bias") and ".routers." in name]
    assert len(biases) == 3
    for bias in biases:
        # 12 steps: an even number of moves of 0.01, less those of a load that was even to the text.
        assert bias.abs().max() <= 0.12 + 1e-6
        assert torch.allclose((bias / 0.01).round() * 0.01, bias, atol=1e-6)
    assert any(bias.any() for bias in biases)


@pytest.mark.parametrize("rows", [None, 3])
def test_router_losses_are_logged_with_and_without_gradcache(
    rows: int | None, experiment: Make, tmp_path: Path
) -> None:
    """The loss that is logged is the sum of its terms, so that none is hidden."""
    adapter = {"rank": 24, "alpha": 24.0}
    config = tiny.parsed(experiment(model__adapter=adapter, training__embedding__gradcache_rows=rows))
    tiny.train_arm(config, "joint_moe", tmp_path)
    lines = [line for line in tiny.lines(tmp_path / "metrics.jsonl") if line["task"] == "embedding"]
    for line in lines[1:]:
        terms = line["infonce"] + 0.01 * line["load_balance"] + 1e-3 * line["router_z"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
    assert "load_balance" not in lines[0]
