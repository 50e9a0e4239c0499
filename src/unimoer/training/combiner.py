"""What all ways to combine two tasks' gradients share: taking them, adding them up, and the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimoer.errors import UserError
from unimoer.training.parallel import ALONE, Group
from unimoer.types import Task


class Combiner:
    """The plain sum of the weighted losses; subclasses choose other coefficients.

    A step is one call of `backward` for each of its batches (losses and gradients are averaged over them), the
    optimizer's step, and `after_step`. Besides `.grad`, one gradient a task is held in memory during a step.

    Args:
        weights: the losses are multiplied by these before anything else.
        group: of processes that each have a part of the gradients.
    """

    recomputes_losses: ClassVar[bool] = False
    """Whether `after_step` calls its argument; if not, the step's batches need not be kept for it."""

    def __init__(self, weights: Mapping[Task, float], group: Group = ALONE) -> None:
        self.weights = dict(weights)
        self.group = group
        self._start_step()

    def _start_step(self) -> None:
        self._calls = 0
        self._gradients: list[list[Tensor | None]] = []
        self._loss_sum = torch.zeros(len(self.weights), dtype=torch.float64)

    def backward(
        self,
        losses: Mapping[Task, Tensor],
        parameters: Sequence[nn.Parameter],
        values: Mapping[Task, float] | None = None,
    ) -> dict[str, float]:
        """Set `.grad` of all parameters that a task reaches, to the combination over the step's calls so far.

        The losses are scalars, one of each task, with graphs of their own. `values` are what methods that look at
        losses are to see, the losses themselves when None: a router's losses have a gradient, but say nothing about
        how well a task is learned. What was in `.grad` is replaced; a parameter that no task reaches is left alone.
        Returns numbers for the log, of all calls so far: the last call's are those of the step.

        Raises:
            ValueError: a task is missing or unknown.
            UserError: a loss is negative, and the method needs positive ones.
        """
        if losses.keys() != self.weights.keys():
            raise ValueError(f"losses of {sorted(losses)} for a combiner of {sorted(self.weights)}")
        weighted = [weight * losses[task] for task, weight in self.weights.items()]
        found = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in weighted]
        for own in found:
            self.group.add(own)
        before = self._gradients or [[None] * len(parameters)] * len(found)
        self._gradients = [
            [_add(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(before, found, strict=True)
        ]
        seen = {task: loss.item() for task, loss in losses.items()} if values is None else values
        self._loss_sum += torch.tensor([seen[task] for task in self.weights], dtype=torch.float64)
        self._calls += 1
        gram = _gram(self._gradients) / self._calls**2
        coefficients = self.coefficients(gram, self._weighted(self._loss_sum / self._calls)).tolist()
        for parameter, *gradients in zip(parameters, *self._gradients, strict=True):
            total: Tensor | None = None
            for coefficient, gradient in zip(coefficients, gradients, strict=True):
                total = _add(total, None if gradient is None else gradient * (coefficient / self._calls))
            if total is not None:
                parameter.grad = total
        return self._log(gram, coefficients)

    def _weighted(self, values: Tensor) -> Tensor:
        return torch.tensor(list(self.weights.values()), dtype=torch.float64) * values

    def coefficients(self, gram: Tensor, losses: Tensor) -> Tensor:
        """`[T]` from the gradients' inner products `[T, T]` and the weighted losses `[T]`, all float64 on the CPU."""
        return torch.ones_like(losses)

    def after_step(self, losses: Callable[[], Mapping[Task, float]]) -> None:
        """End the step, once the optimizer has moved the parameters.

        `losses` computes the step's `values` anew, unweighted: on the same batches, averaged over them, under the same
        random numbers. It is called only if `recomputes_losses`.
        """
        self._start_step()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs between two steps, as copies."""
        return {name: tensor.detach().clone() for name, tensor in self._state().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            UserError: a tensor is missing or unknown.
        """
        own = self._state()
        if own.keys() != state.keys():
            raise UserError(f"gradient combination: the state has {sorted(state)}, the method needs {sorted(own)}")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        return {}

    def _log(self, gram: Tensor, coefficients: Sequence[float]) -> dict[str, float]:
        norms = gram.diagonal().sqrt()
        log: dict[str, float] = {}
        for task, norm, coefficient in zip(self.weights, norms.tolist(), coefficients, strict=True):
            log |= {f"gradient_norm_{task}": norm, f"gradient_weight_{task}": coefficient}
        if len(norms) == 2:
            product = float(norms.prod())
            log["gradient_cosine"] = float(gram[0, 1]) / product if product > 0 else 0.0
        return log


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _gram(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products `[T, T]` of the tasks' gradients; a missing gradient counts as zeros."""
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for i, first in enumerate(gradients):
        for j, second in enumerate(gradients[: i + 1]):
            pairs = zip(first, second, strict=True)
            products = [torch.sum(a * b) for a, b in pairs if a is not None and b is not None]
            if products:
                # Float64 only on the CPU: not every accelerator has it.
                gram[i, j] = gram[j, i] = torch.stack(products).cpu().double().sum()
    return gram
