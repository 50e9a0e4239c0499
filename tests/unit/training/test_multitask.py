"""Two losses, one gradient: each method against its paper's formula, written out on flat vectors or by torchjd."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torchjd.aggregation
import torchjd.scalarization
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import tiny
from unimoer.config.gradients import (
    CAGradConfig,
    FAMOConfig,
    GradientConfig,
    GradNormConfig,
    PCGradConfig,
    SumConfig,
)
from unimoer.errors import UserError
from unimoer.training.combiner import Combiner
from unimoer.training.multitask import CAGrad, build_combiner
from unimoer.types import Task

E, R = Task.EMBEDDING, Task.RERANKING
BOTH = {E: 1.0, R: 1.0}
METHODS: list[GradientConfig] = [SumConfig(), PCGradConfig(), CAGradConfig(), GradNormConfig(), FAMOConfig()]
ids = {"ids": lambda config: config.type}


def build(config: GradientConfig, weights: Mapping[Task, float] = BOTH) -> Combiner:
    return build_combiner(config, tuple(weights), weights)


class World:
    """Losses `offset_t + <g_t, theta>` over four parameters: two shared, a reranking head, and one nobody reaches."""

    def __init__(self, cosine: float, *, ratio: float = 3.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        first, other = torch.linalg.qr(torch.randn(9, 2, generator=generator))[0].t()
        second = ratio * (cosine * first + math.sqrt(1 - cosine**2) * other)
        head = torch.randn(2, generator=generator)
        self.gradients = {
            E: torch.cat([first, torch.zeros(2)]),
            R: torch.cat([second, head]),
        }
        self.parameters = [nn.Parameter(torch.randn(s, generator=generator)) for s in ((2, 3), (3,), (2,), (4,))]
        self.offsets = {E: 20.0, R: 30.0}

    def losses(self) -> dict[Task, Tensor]:
        shared = torch.cat([parameter.flatten() for parameter in self.parameters[:2]])
        whole = torch.cat([shared, self.parameters[2]])
        return {
            E: self.offsets[E] + shared @ self.gradients[E][:9],
            R: self.offsets[R] + whole @ self.gradients[R],
        }

    def values(self) -> dict[Task, float]:
        return {task: loss.item() for task, loss in self.losses().items()}

    def found(self) -> Tensor:
        """`.grad` of the reached parameters as one vector."""
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters[:3]])


def combined(config: GradientConfig, world: World, weights: Mapping[Task, float] = BOTH) -> Tensor:
    build(config, weights).backward(world.losses(), world.parameters)
    return world.found()


@pytest.mark.parametrize("weights", [BOTH, {E: 0.5, R: 2.0}])
def test_the_sum_is_the_gradient_of_the_weighted_sum(weights: dict[Task, float]) -> None:
    world, twin = World(-0.4), World(-0.4)
    log = build(SumConfig(), weights).backward(world.losses(), world.parameters)
    sum(weights[task] * loss for task, loss in twin.losses().items()).backward()
    for parameter, other in zip(world.parameters, twin.parameters, strict=True):
        assert parameter.grad is other.grad is None or torch.equal(parameter.grad, other.grad)
    first, second = weights[E] * world.gradients[E], weights[R] * world.gradients[R]
    assert log["gradient_norm_reranking"] == pytest.approx(float(second.norm()), rel=1e-5)
    assert log["gradient_cosine"] == pytest.approx(float(torch.cosine_similarity(first, second, 0)), rel=1e-5)
    assert (log["gradient_weight_embedding"], log["gradient_weight_reranking"]) == (1, 1)


@pytest.mark.parametrize("config", METHODS, **ids)
@pytest.mark.parametrize("cosine", [-0.6, 0.6])
def test_what_one_task_reaches_moves_with_it_and_what_none_reaches_stays(config: GradientConfig, cosine: float) -> None:
    world = World(cosine)
    log = build(config).backward(world.losses(), world.parameters)
    expected = sum(log[f"gradient_weight_{task}"] * gradient for task, gradient in world.gradients.items())
    assert tiny.relative(world.found(), expected) < 1e-6
    assert log["gradient_weight_embedding"] > 0 < log["gradient_weight_reranking"]
    assert world.parameters[3].grad is None


@pytest.mark.parametrize("weights", [BOTH, {E: 0.5, R: 2.0}])
@pytest.mark.parametrize("cosine", [-1.0, -0.8, -0.1, 0.0, 0.5])
def test_pcgrad_is_algorithm_1_and_torchjd(cosine: float, weights: dict[Task, float]) -> None:
    world = World(cosine)
    first, second = (weights[task] * world.gradients[task] for task in (E, R))
    found = combined(PCGradConfig(), world, weights)
    dot = first @ second
    expected = first + second
    if dot < 0:
        expected = expected - dot * (first / first.square().sum() + second / second.square().sum())
        assert tiny.relative(found, first + second) > 0.01
    assert (found - expected).norm() < 1e-5
    for seed in range(3):
        torch.manual_seed(seed)
        theirs = torchjd.aggregation.PCGrad()(torch.stack([first, second]))
        assert (found - theirs).norm() < 1e-5


def test_after_pcgrad_the_step_hurts_no_task() -> None:
    world = World(-0.9, ratio=10)
    plain = combined(SumConfig(), world)
    assert plain @ world.gradients[E] < 0
    surgery = combined(PCGradConfig(), world)
    assert surgery @ world.gradients[E] > -1e-5 < surgery @ world.gradients[R]


def test_a_vanishing_gradient_does_not_break_pcgrad() -> None:
    """Its square underflows, the inner product does not."""
    world = World(-0.5)
    assert torch.isfinite(combined(PCGradConfig(), world, {E: 1e-30, R: 1.0})).all()


@given(first=st.floats(0.01, 100), second=st.floats(0.01, 100), cosine=st.floats(-0.99, 0.99), c=st.floats(0.05, 0.95))
def test_cagrad_solves_the_dual_problem(first: float, second: float, cosine: float, c: float) -> None:
    one = torch.tensor([first, 0.0], dtype=torch.float64)
    two = second * torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
    mean = (one + two) / 2

    def dual(w: float) -> float:
        mixed = w * one + (1 - w) * two
        return float(mixed @ mean + c * mean.norm() * mixed.norm())

    solved = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
    dot = float(one @ two)
    w = CAGrad._minimiser(first**2, dot, second**2, c * float(mean.norm()))
    assert dual(w) <= min(float(solved.fun), dual(0.0), dual(1.0)) + 1e-9 * (first + second) ** 2


@pytest.mark.parametrize("cosine", [-0.9, -0.3, 0.0, 0.7])
@pytest.mark.parametrize("c", [0.2, 0.8])
def test_cagrad_helps_the_worse_off_task_most_within_its_ball(cosine: float, c: float) -> None:
    world = World(cosine)
    both = torch.stack([world.gradients[E], world.gradients[R]])
    mean = both.mean(0)
    direction = combined(CAGradConfig(c=c), world) / 2
    assert float((direction - mean).norm()) == pytest.approx(c * float(mean.norm()), rel=1e-4)
    # The best of the ball lies in the plane of both gradients: its edge, all the way round.
    basis = torch.linalg.qr(both.t())[0]
    angles = torch.linspace(0, 2 * math.pi, 20_000)
    edge = mean + c * mean.norm() * (torch.stack([angles.cos(), angles.sin()], 1) @ basis.t())
    best = (edge @ both.t()).min(1).values.max()
    assert float((both @ direction).min()) == pytest.approx(float(best), abs=1e-4)


@pytest.mark.parametrize(
    ("gram", "expected"),
    [
        ([[4.0, 4.0], [4.0, 4.0]], [1.5, 1.5]),  # Equal gradients.
        ([[4.0, -4.0], [-4.0, 4.0]], [1.0, 1.0]),  # Opposite ones: the mean is zero.
        ([[4.0, 0.0], [0.0, 0.0]], [1.0, 1.0]),  # One task without a gradient.
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0]),
        # Opposite, 4 against 1: d = g_0 - c |g_0| towards the stronger one.
        ([[16.0, -4.0], [-4.0, 1.0]], [1.0, 2.5]),
    ],
)
def test_cagrad_at_its_corners(gram: list[list[float]], expected: list[float]) -> None:
    combiner = CAGrad(BOTH, 0.5)
    found = combiner.coefficients(torch.tensor(gram, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    length = torch.tensor(gram, dtype=torch.float64)
    difference = found - torch.tensor(expected, dtype=torch.float64)
    assert torch.isfinite(found).all()
    # As vectors: coefficients are not unique when the gradients are parallel.
    assert float(difference @ length @ difference) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_descends_the_loss_of_the_paper(alpha: float) -> None:
    """Against autograd through equations 1 and 2, with Adam of its own."""
    # Norms of 1 and 1.2 after the weights: with alpha 0 embedding gains, with 1.5 its faster fall outweighs that.
    world = World(0.2, ratio=2.4)
    world.gradients[R][9:] = 0
    weights = {E: 1.0, R: 0.5}
    combiner = build(GradNormConfig(alpha=alpha, lr=0.1), weights)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1)
    norms = torch.tensor([weights[t] * world.gradients[t].norm().item() for t in (E, R)], dtype=torch.float64)
    first: Tensor | None = None
    for step in range(6):
        world.offsets = {E: 20.0 - 3 * step, R: 30.0 - step}
        losses = torch.tensor([weights[t] * world.values()[t] for t in (E, R)], dtype=torch.float64)
        first = losses if first is None else first
        current = 2 * torch.softmax(logits, 0)
        log = combiner.backward(world.losses(), world.parameters)
        assert log["gradient_weight_embedding"] == pytest.approx(current.tolist()[0], rel=1e-5)
        sizes = current * norms
        rates = losses / first
        target = (sizes.mean() * (rates / rates.mean()) ** alpha).detach()
        adam.zero_grad()
        (sizes - target).abs().sum().backward()
        adam.step()
        combiner.after_step(world.values)
    assert (log["gradient_weight_embedding"] > 1) == (alpha == 0)


def test_gradnorm_evens_out_norms_and_favours_the_slower_task() -> None:
    def shares(falling: Task | None) -> float:
        world = World(0.0, ratio=1.0)
        world.gradients[R][9:] = 0
        combiner = build(GradNormConfig(lr=0.05))
        for step in range(20):
            world.offsets = {task: 20.0 - (0.5 * step if task is falling else 0) for task in (E, R)}
            log = combiner.backward(world.losses(), world.parameters)
            combiner.after_step(world.values)
        return log["gradient_weight_embedding"] / log["gradient_weight_reranking"]

    assert shares(None) == pytest.approx(1, abs=0.2)
    assert shares(E) < 0.8
    assert shares(R) > 1.25


@pytest.mark.parametrize("weights", [BOTH, {E: 0.5, R: 2.0}])
def test_famo_is_that_of_torchjd(weights: dict[Task, float]) -> None:
    """Over steps that move the parameters; ours is on the scale of the sum, twice theirs."""
    world = World(-0.3)
    combiner = build(FAMOConfig(), weights)
    theirs = torchjd.scalarization.FAMO(2, lr=0.025, weight_decay=0.01)
    optimizer = torch.optim.SGD(world.parameters, lr=0.05)

    def weighted() -> Tensor:
        return torch.stack([weights[task] * loss for task, loss in world.losses().items()])

    for step in range(8):
        optimizer.zero_grad()
        theirs(weighted()).backward()
        expected = 2 * world.found()
        log = combiner.backward(world.losses(), world.parameters)
        assert tiny.relative(world.found(), expected) < 1e-5
        optimizer.step()
        world.offsets[R] = 30.0 - 2 * step
        combiner.after_step(world.values)
        theirs.update(weighted().detach())
    assert combiner.recomputes_losses
    # Reranking improved more, by its offset: it has lost weight.
    equal = build(FAMOConfig(), weights).backward(world.losses(), world.parameters)
    assert log["gradient_weight_reranking"] < 0.98 * equal["gradient_weight_reranking"]


def test_weights_of_the_losses_change_no_direction_of_famo() -> None:
    equal, skewed = (combined(FAMOConfig(), World(0.3), {E: 1.0, R: weight}) for weight in (1.0, 7.0))
    assert float(torch.cosine_similarity(equal, skewed, 0)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("config", [GradNormConfig(), FAMOConfig()], **ids)
def test_negative_losses_are_refused_by_those_that_divide_by_them(config: GradientConfig) -> None:
    world = World(0.3)
    world.offsets[R] = -30.0
    with pytest.raises(UserError, match="reranking -"):
        combined(config, world)
    combined(PCGradConfig(), world)


@pytest.mark.parametrize("config", [GradNormConfig(), FAMOConfig()], **ids)
def test_a_loss_of_zero_is_survived(config: GradientConfig) -> None:
    """In-batch losses reach it in float32."""
    world = World(0.3)
    combiner = build(config)
    for _ in range(2):
        losses = {task: loss * 0 for task, loss in world.losses().items()}
        combiner.backward(losses, world.parameters)
        combiner.after_step(lambda: {E: 0.0, R: 0.0})
    assert all(tensor.isfinite().all() for tensor in combiner.state_dict().values())


@pytest.mark.parametrize("config", METHODS, **ids)
def test_batches_of_a_step_count_as_one_and_steps_apart(config: GradientConfig) -> None:
    """Conflict is judged on the averaged gradients, not batch by batch."""
    parts, whole = [World(-0.9, seed=1), World(0.4, seed=2)], World(0.0)
    parts[1].parameters = parts[0].parameters
    combiner, twin = build(config), build(config)

    def mean() -> dict[Task, Tensor]:
        one, other = (part.losses() for part in parts)
        return {task: (one[task] + other[task]) / 2 for task in one}

    for _ in range(3):
        for part in parts:
            log = combiner.backward(part.losses(), part.parameters)
        found = parts[0].found()
        expected = twin.backward(mean(), parts[0].parameters)
        assert tiny.relative(found, parts[0].found()) < 1e-5
        assert log == pytest.approx(expected, rel=1e-4)
        combiner.after_step(whole.values)
        twin.after_step(whole.values)


@pytest.mark.parametrize("config", METHODS, **ids)
def test_a_resumed_combiner_goes_on_bit_for_bit(config: GradientConfig) -> None:
    def step(combiner: Combiner, number: int) -> Tensor:
        world = World(-0.5, seed=number)
        combiner.backward(world.losses(), world.parameters)
        combiner.after_step(lambda: {E: 10.0 + number, R: 20.0 - number})
        return world.found()

    combiner, resumed = build(config), build(config)
    for number in range(3):
        step(combiner, number)
    state = combiner.state_dict()
    resumed.load_state_dict(state)
    for number in range(3, 6):
        assert torch.equal(step(combiner, number), step(resumed, number))
    after = combiner.state_dict()
    assert after.keys() == resumed.state_dict().keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, resumed.state_dict()[name])
        assert not torch.equal(tensor, state[name]) or name == "first_losses"


def test_the_state_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match="first_losses"):
        build(FAMOConfig()).load_state_dict(build(GradNormConfig()).state_dict())


@pytest.mark.parametrize("config", METHODS, **ids)
def test_a_single_task_gets_its_plain_gradient(config: GradientConfig) -> None:
    world = World(0.3)
    combiner = build_combiner(config, (R,), {E: 3.0, R: 2.0})
    combiner.backward({R: world.losses()[R]}, world.parameters)
    assert tiny.relative(world.found(), 2 * world.gradients[R]) < 1e-6
    assert not combiner.recomputes_losses
    with pytest.raises(ValueError, match="embedding"):
        combiner.backward(world.losses(), world.parameters)


@pytest.mark.parametrize("config", METHODS, **ids)
def test_no_random_numbers_are_drawn(config: GradientConfig) -> None:
    """They would change the dropout masks between the arms of an experiment."""
    before = torch.get_rng_state()
    world = World(-0.5)
    combiner = build(config)
    combiner.backward(world.losses(), world.parameters)
    combiner.after_step(world.values)
    assert torch.equal(torch.get_rng_state(), before)
