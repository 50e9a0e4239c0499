"""How the losses of both tasks in one step become one gradient.

Every method here chooses two numbers: the optimizer gets `c_e g_e + c_r g_r`, where g_t is the gradient of task t's
weighted loss over all trained parameters as one vector. (So does the official PCGrad; a projection layer by layer
would be another method.) A parameter that a task does not reach stands in g_t as zeros, so it makes no difference
whether experts are stored together or apart. The numbers follow from the losses and from three inner products.

All methods are on the scale of the plain sum, c = (1, 1), so that one learning rate and one `max_grad_norm` mean the
same for all of them. The CAGrad and FAMO papers are on the scale of the mean, half of that.

Why not torchjd: on two tasks each method is a few lines on three numbers; torchjd's PCGrad draws from the global
random stream, so that switching it on would change the dropout masks too; its CAGrad needs a convex solver; the
moments of its FAMO are in no state_dict; it has no GradNorm. It serves as an oracle in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

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
from unimoer.training.parallel import ALONE, Group
from unimoer.types import Task

EPSILON = 1e-8
"""Added to losses before a logarithm or a division, as in the official FAMO."""


class PCGrad(Combiner):
    """Of two gradients in conflict (inner product below 0), each gives up its part along the other.

    Yu et al., NeurIPS 2020, arXiv 2001.06782, algorithm 1. Each projection is on the other's original gradient, so
    with two tasks the paper's random order of projections does not matter.
    """

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        dot = gram[0, 1]
        squares = gram.diagonal()
        # A square may underflow to 0 where the inner product does not.
        return 1 - dot / squares if dot < 0 < squares.min() else torch.ones_like(losses)


class CAGrad(Combiner):
    """`max_d min_i <g_i, d>` over `|d - g_0| <= c |g_0|`, g_0 the mean gradient; twice that d.

    Liu et al., NeurIPS 2021, arXiv 2110.14048, section 3. The dual problem is `min_w <g_w, g_0> + c |g_0| |g_w|` over
    `g_w = w g_1 + (1 - w) g_2`, and then `d = g_0 + c |g_0| g_w / |g_w|`. With two tasks it has a closed form, so no
    solver is needed. The official code divides d by 1 + c^2: AdamW does not see that constant, clipping does.
    """

    def __init__(self, weights: Mapping[Task, float], c: float, group: Group = ALONE) -> None:
        super().__init__(weights, group)
        self.c = c

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        (first, dot), (_, second) = gram.tolist()
        radius = self.c * math.sqrt(max(0.0, first + 2 * dot + second)) / 2
        w = self._minimiser(first, dot, second, radius)
        length = math.sqrt(max(0.0, w * w * first + 2 * w * (1 - w) * dot + (1 - w) * (1 - w) * second))
        # g_w is zero at the optimum only if a task has no gradient: then the mean is as good as any direction.
        pull = 2 * radius / length if length > 0 else 0.0
        return torch.tensor([1 + pull * w, 1 + pull * (1 - w)], dtype=torch.float64)

    @staticmethod
    def _minimiser(first: float, dot: float, second: float, radius: float) -> float:
        """Of `slope w + radius |g_w|` on [0, 1], with `|g_w|^2 = square ((w - centre)^2 + rest)`.

        The objective is convex, so a minimum outside the interval means its nearer end.
        """
        square, slope = first - 2 * dot + second, (first - second) / 2
        if square <= 0 or radius <= 0:
            return 0.5
        centre = (second - dot) / square
        rest = max(0.0, first * second - dot * dot) / square**2
        # The derivative is zero where (w - centre) / sqrt((w - centre)^2 + rest) has this value.
        sine = -slope / (radius * math.sqrt(square))
        if abs(sine) >= 1:
            return 1.0 if sine > 0 else 0.0
        return min(1.0, max(0.0, centre + sine * math.sqrt(rest / (1 - sine * sine))))


class _LearnedWeights(Combiner):
    """Loss weights that are the softmax of logits, which Adam moves once a step."""

    _losses: Tensor
    """Of the step's calls so far, weighted and averaged."""

    def __init__(
        self, weights: Mapping[Task, float], lr: float, weight_decay: float = 0.0, group: Group = ALONE
    ) -> None:
        super().__init__(weights, group)
        self.logits = torch.zeros(len(weights), dtype=torch.float64)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr, weight_decay=weight_decay)
        # Adam makes its moments in its first step: made here, they are always there to be saved and loaded.
        moments = {name: torch.zeros_like(self.logits) for name in ("exp_avg", "exp_avg_sq")}
        self.optimizer.state[self.logits] = {"step": torch.tensor(0.0), **moments}

    def _state(self) -> dict[str, Tensor]:
        return {"logits": self.logits, **self.optimizer.state[self.logits]}

    def _shifted(self, losses: Tensor) -> Tensor:
        if not (losses >= 0).all():
            named = ", ".join(f"{task} {loss:g}" for task, loss in zip(self.weights, losses.tolist(), strict=True))
            raise UserError(f"training.gradients: {type(self).__name__} needs losses of 0 or more, found {named}")
        return losses + EPSILON

    def _shares(self) -> Tensor:
        return torch.softmax(self.logits, 0)

    def _descend(self, slopes: Tensor) -> None:
        """One step of Adam, from the derivatives `[T]` with respect to the softmax."""
        shares = self._shares()
        self.logits.grad = shares * (slopes - (shares * slopes).sum())
        self.optimizer.step()


class GradNorm(_LearnedWeights):
    """Weights w_i that even out the gradient norms, G_i = w_i |g_i|, of tasks that train at the same rate.

    Chen et al., ICML 2018, arXiv 1711.02257, equations 1 and 2: w descends `sum_i |G_i - mean(G) r_i^alpha|` with the
    target held constant, where r_i is the loss over its first value, relative to the mean over the tasks. Differs from
    the paper in W, all trained parameters instead of the last shared layer, and in `w = T softmax(v)` with Adam on v
    (LibMTL's form) instead of steps on w that are rescaled to sum T: those can turn a weight negative. The first
    losses are those of the first step, so its batches had better not be small.
    """

    _norms: Tensor

    def __init__(self, weights: Mapping[Task, float], alpha: float, lr: float, group: Group = ALONE) -> None:
        super().__init__(weights, lr, group=group)
        self.alpha = alpha
        self.first_losses = torch.full((len(weights),), math.nan, dtype=torch.float64)

    def _state(self) -> dict[str, Tensor]:
        return {**super()._state(), "first_losses": self.first_losses}

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        self._norms, self._losses = gram.diagonal().sqrt(), self._shifted(losses)
        return len(losses) * self._shares()

    def after_step(self, losses: Callable[[], Mapping[Task, float]]) -> None:
        if self.first_losses.isnan().any():
            self.first_losses.copy_(self._losses)
        rates = self._losses / self.first_losses
        norms = len(rates) * self._norms
        sizes = self._shares() * norms
        target = sizes.mean() * (rates / rates.mean()) ** self.alpha
        self._descend(torch.sign(sizes - target) * norms)
        super().after_step(losses)


class FAMO(_LearnedWeights):
    """Weights that even out how fast the logarithms of the losses fall: what improved more gets less weight.

    Liu et al., NeurIPS 2023, arXiv 2306.03792, algorithm 1, with the update of the official code: gradient of
    `sum_i z_i log(L_i) / sum_i(z_i / L_i)`, the denominator held constant, times T. The logits descend
    `sum_i z_i delta_i`, with delta_i the fall of log L_i over the step on the same batches.

    A constant factor on a loss drops out of the gradient of its logarithm: the losses' own weights have no effect here
    except on the common scale. The logarithm is that of the task's loss alone: a router's losses take part in the
    gradient, with the coefficient of their task, but not in what is called improvement.
    """

    recomputes_losses: ClassVar[bool] = True

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        self._losses = self._shifted(losses)
        shares = self._shares() / self._losses
        return len(shares) * shares / shares.sum()

    def after_step(self, losses: Callable[[], Mapping[Task, float]]) -> None:
        now = losses()
        weighted = self._weighted(torch.tensor([now[task] for task in self.weights], dtype=torch.float64))
        self._descend(self._losses.log() - self._shifted(weighted).log())
        super().after_step(losses)


def build_combiner(
    config: GradientConfig, tasks: Sequence[Task], weights: Mapping[Task, float], group: Group = ALONE
) -> Combiner:
    """The method of `config` for the tasks of a run, with their weights, above 0, out of `weights`.

    With a single task there is nothing to combine: it gets its own gradient.
    """
    chosen = {task: weights[task] for task in tasks}
    if len(chosen) == 1:
        return Combiner(chosen, group)
    match config:
        case SumConfig():
            return Combiner(chosen, group)
        case PCGradConfig():
            return PCGrad(chosen, group)
        case CAGradConfig():
            return CAGrad(chosen, config.c, group)
        case GradNormConfig():
            return GradNorm(chosen, config.alpha, config.lr, group)
        case FAMOConfig():
            return FAMO(chosen, config.lr, config.weight_decay, group)
