"""Gradients of frozen weights, layer by layer, in little memory: only their inner products are ever wanted.

The gradient of `y = x W^T` is `g^T x`, with g the gradient of y: it follows from what passes through a layer. So each
batch goes forward once, keeping what enters every decoder layer and nothing else; then, from the last layer down, one
layer at a time is computed again with a graph and differentiated. What is held at once are the layers' inputs, the
activations of one layer, and a block of rows of each gradient.

Not as a Gram matrix over tokens, `<g1^T x1, g2^T x2> = sum((x1 x2^T) * (g1 g2^T))`: it needs no gradient either, but
at thousands of tokens a batch it is several times the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unimoer.model.adapter import MoELoRALinear
from unimoer.model.unified import UnifiedModel

BLOCK_BYTES = 64 * 2**20
"""Of the gradients of one block of rows, all batches together."""


@dataclass
class _Pass:
    """One forward pass: what every layer was called with, and what the top of the model was given."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    top: Tensor | None = None
    """The last layer's output, where the kept graph begins."""


@dataclass
class _Traffic:
    """What passed through one adapted projection: inputs and gradients of outputs, by batch."""

    inputs: list[list[Tensor]]
    gradients: list[list[Tensor]]


def decoder_layers(model: UnifiedModel) -> dict[int, tuple[nn.Module, list[MoELoRALinear]]]:
    """The decoder's layers by number, each with its adapted projections."""
    layers: dict[int, tuple[nn.Module, list[MoELoRALinear]]] = {}
    for name, module in model.decoder.named_modules():
        if isinstance(module, MoELoRALinear) and module.targets:
            parts = name.split(".")
            depth = next(place for place, part in enumerate(parts) if part.isdigit())
            layer = model.decoder.get_submodule(".".join(parts[: depth + 1]))
            layers.setdefault(int(parts[depth]), (layer, []))[1].append(module)
    return dict(sorted(layers.items()))


def gradient_products(model: UnifiedModel, losses: Sequence[Callable[[], Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """For every layer, last to first: inner products `[L, L]`, float64, of the losses' gradients with respect to the
    frozen weights under its adapters.

    Each loss is called once and runs the model any number of times. Parameters, their gradients and `requires_grad`
    stay as they are.
    """
    layers = decoder_layers(model)
    modules = [layer for layer, _ in layers.values()]
    passes: list[list[_Pass]] = []
    above: list[list[Tensor]] = []
    for loss in losses:
        found = _forward(model.decoder, modules, loss)
        passes.append(found[0])
        above.append(found[1])
    for place, (index, (layer, projections)) in reversed(list(enumerate(layers.items()))):
        traffic = {module: _Traffic([[] for _ in losses], [[] for _ in losses]) for module in projections}
        for number, (own, gradients) in enumerate(zip(passes, above, strict=True)):
            above[number] = [
                _backward(layer, one.calls[place], gradient, number, traffic)
                for one, gradient in zip(own, gradients, strict=True)
            ]
            for one in own:
                one.calls.pop()
        yield index, sum((_products(one) for one in traffic.values()), torch.zeros(len(losses), len(losses)).double())


def _forward(
    decoder: nn.Module, layers: Sequence[nn.Module], loss: Callable[[], Tensor]
) -> tuple[list[_Pass], list[Tensor]]:
    """The passes of a loss, and the gradient of it with respect to the last layer's output in each."""
    passes: list[_Pass] = []

    def begin(*_: Any) -> None:
        passes.append(_Pass())
        torch.set_grad_enabled(False)

    def enter(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        passes[-1].calls.append((arguments, options))

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        torch.set_grad_enabled(True)
        passes[-1].top = states = _states(output).detach().requires_grad_()
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with ExitStack() as hooks, torch.enable_grad():
        # Of the decoder, not of its first layer: it must know, before it calls that, that there is nothing to keep.
        hooks.callback(decoder.register_forward_pre_hook(begin).remove)
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        hooks.callback(layers[-1].register_forward_hook(leave).remove)
        value = loss()
    return passes, list(torch.autograd.grad(value, [one.top for one in passes if one.top is not None]))


def _backward(
    layer: nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    gradient: Tensor,
    number: int,
    traffic: dict[MoELoRALinear, _Traffic],
) -> Tensor:
    """Compute a layer again and differentiate it: notes its traffic, returns the gradient of its input."""
    arguments, options = call
    options = dict(options)
    if arguments:
        states = arguments[0].detach().requires_grad_()
        arguments = (states, *arguments[1:])
    else:
        states = options["hidden_states"] = options["hidden_states"].detach().requires_grad_()

    def note(module: MoELoRALinear, given: tuple[Any, ...], output: Tensor) -> None:
        traffic[module].inputs[number].append(given[0].detach().flatten(0, -2))
        output.register_hook(lambda grad: traffic[module].gradients[number].append(grad.detach().flatten(0, -2)))

    with ExitStack() as hooks, torch.enable_grad():
        for module in traffic:
            hooks.callback(module.register_forward_hook(note).remove)
        output = _states(layer(*arguments, **options))
        [below] = torch.autograd.grad(output, [states], gradient)
    return below


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _products(traffic: _Traffic) -> Tensor:
    """Inner products `[L, L]` of the gradients `g^T x` of one projection, some rows at a time."""
    inputs = [torch.cat(found).float() for found in traffic.inputs]
    # The gradients of several passes come in the order of the passes: each is differentiated right after it is run.
    gradients = [torch.cat(found) for found in traffic.gradients]
    width, height = inputs[0].shape[1], gradients[0].shape[1]
    rows = max(1, BLOCK_BYTES // (4 * width * len(inputs)))
    total = torch.zeros(len(inputs), len(inputs)).double()
    for start in range(0, height, rows):
        block = torch.stack(
            [(g[:, start : start + rows].float().t() @ x).flatten() for x, g in zip(inputs, gradients, strict=True)]
        )
        # Float64 only on the CPU: not every accelerator has it.
        total += (block @ block.t()).cpu().double()
    return total
