"""What routing costs and how it is doing: losses that keep experts in use, and a monitor that sees them collapse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from unimoer.config.router import LearnedRouterConfig, RouterConfig
from unimoer.losses.balance import load_balance, mean_weights, z_loss
from unimoer.model.routing import Routing, RoutingContext, RoutingTrace
from unimoer.tracking import JsonlWriter
from unimoer.training.parallel import ALONE, Group
from unimoer.types import Task

COLLAPSED = 0.95
"""Mean weight of one expert, in every task, from which a router counts as collapsed."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One router in one forward pass of the whole batch."""

    rows: Tensor | None
    """Number of texts, up to a factor that all passes share; None, like `weights`, where nothing is weighed."""
    weights: Tensor | None
    """Mean over the decisions, `[E]`."""
    z: Tensor | None
    own: Mapping[str, Tensor]
    """The router's own terms, already weighted."""

    @classmethod
    def of(cls, decision: Routing, context: RoutingContext | None, *, z: bool) -> tuple[_Pass, Tensor | float]:
        """What this process has seen of a pass, and how many decisions that were."""
        weights = decision.weights
        if weights is None or context is None:
            return cls(None, None, None, decision.losses), 1.0
        logits = decision.logits if z else None
        one = cls(
            # A kernel that fills, not a number that the device must wait for.
            weights.new_full((), len(weights)),
            mean_weights(weights, context.mask),
            None if logits is None else z_loss(logits, context.mask),
            decision.losses,
        )
        return one, float(len(weights)) if weights.shape[1] == 1 else context.count.sum()

    @property
    def values(self) -> list[Tensor]:
        return [value for value in (self.rows, self.weights, self.z, *self.own.values()) if value is not None]

    def replaced(self, values: Iterator[Tensor]) -> _Pass:
        """The same pass with other numbers, in the order of `values`."""
        rows, weights, z = (None if old is None else next(values) for old in (self.rows, self.weights, self.z))
        return _Pass(rows, weights, z, {label: next(values) for label in self.own})


class RoutingLosses:
    """Load balance over both tasks, z-loss, and the routers' own terms, as one loss a batch.

    A batch holds one task. Balancing it alone would push each task to use all experts alike, which is the opposite of
    what routing is for; so the other task's last mean weights stand beside it, without a gradient, and the balance is
    that of both. Until the other task has been seen there is none.

    With several processes all means are those of the whole batch. A router's own term is computed from the share of
    one process, and then averaged: exact where it is a mean over decisions, which all are but `divergence`.
    """

    def __init__(self, config: RouterConfig | None) -> None:
        self.config = config
        self._seen: dict[Task, dict[str, Tensor]] = {}

    def __call__(
        self, task: Task, traces: Sequence[RoutingTrace], group: Group = ALONE
    ) -> tuple[Tensor | None, dict[str, float]]:
        """Weighted sum of the terms, or None when no router has any; and each term for the log.

        There, balance and z-loss are without their weights, and a router's own terms with theirs.
        """
        terms: dict[str, list[Tensor]] = defaultdict(list)
        own: dict[str, list[Tensor]] = defaultdict(list)
        others = [seen for other, seen in self._seen.items() if other is not task]
        wants_z = _trains(self.config) and self.config.z_loss_weight > 0
        routers = self._measure(traces, group, z=wants_z)
        for name, passes in routers.items():
            for one in passes:
                for label, loss in one.own.items():
                    own[label].append(loss / len(passes))
            if not _trains(self.config) or passes[0].weights is None:
                continue
            if others and self.config.aux_loss_weight > 0:
                joint = _joint_weights(passes)
                means = [joint, *(seen[name].to(joint.device) for seen in others)]
                terms["load_balance"].append(load_balance(torch.stack(means).mean(0)))
            terms["router_z"] += [one.z / len(passes) for one in passes if one.z is not None]
        terms = {label: found for label, found in terms.items() if found}
        total = [self._weight(label) * torch.stack(found).sum() / len(routers) for label, found in terms.items()]
        total += [torch.stack(found).sum() / len(routers) for found in own.values()]
        log = {label: torch.stack(found).sum().item() / len(routers) for label, found in {**terms, **own}.items()}
        return (torch.stack(total).sum() if total else None), log

    def remember(self, task: Task, traces: Sequence[RoutingTrace], group: Group = ALONE) -> None:
        """Keep a batch's mean weights, for the balance of the other task's batches."""
        if not _trains(self.config) or self.config.aux_loss_weight == 0 or not traces:
            return
        with torch.no_grad():
            for name, passes in self._measure(traces, group, z=False).items():
                if passes[0].weights is not None:
                    self._seen.setdefault(task, {})[name] = _joint_weights(passes)

    def snapshot(self) -> RoutingLosses:
        """The same losses, against what has been seen up to now."""
        frozen = RoutingLosses(self.config)
        frozen._seen = {task: dict(seen) for task, seen in self._seen.items()}
        return frozen

    def _measure(self, traces: Sequence[RoutingTrace], group: Group, *, z: bool) -> dict[str, list[_Pass]]:
        """Every pass of every router, with `z` if asked; the means over all processes in one collective."""
        found: dict[str, list[_Pass]] = {}
        own: list[Tensor] = []
        counts: list[Tensor | float] = []
        for name in traces[0].decisions if traces else []:
            for trace in traces:
                one, count = _Pass.of(trace.decisions[name], trace.context, z=z)
                found.setdefault(name, []).append(one)
                own += one.values
                counts += [1.0 if value is one.rows else count for value in one.values]
        if group.size > 1:
            whole = iter(group.means(own, counts))
            found = {name: [one.replaced(whole) for one in passes] for name, passes in found.items()}
        return found

    def _weight(self, label: str) -> float:
        assert isinstance(self.config, LearnedRouterConfig)
        return self.config.aux_loss_weight if label == "load_balance" else self.config.z_loss_weight

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name: a resumed run balances against what the interrupted one had seen."""
        return {f"{task.value}|{name}": mean for task, seen in self._seen.items() for name, mean in seen.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen = {}
        for key, mean in state.items():
            task, name = key.split("|")
            self._seen.setdefault(Task(task), {})[name] = mean


def _trains(config: RouterConfig | None) -> TypeGuard[LearnedRouterConfig]:
    """A router that never learns has no losses: they would reach the experts of earlier layers alone."""
    return isinstance(config, LearnedRouterConfig) and config.learned


def _joint_weights(passes: Sequence[_Pass]) -> Tensor:
    """Mean weights over several forward passes of one batch, each counted by its texts."""
    rows = torch.stack([one.rows for one in passes if one.rows is not None])
    return rows / rows.sum() @ torch.stack([one.weights for one in passes if one.weights is not None])


class RoutingMonitor:
    """Every so many steps of a task, one line a router: mean weights, entropy, active experts, one-expert share.

    Read from the weights before floor and dropout, which hide what a router does. Says so, once, when one expert
    takes nearly everything in both tasks.
    """

    def __init__(self, every: int, writer: JsonlWriter, warn: Callable[[str], None]) -> None:
        self.every = every
        self.writer = writer
        self.warn = warn
        self._leading: dict[tuple[str, Task], tuple[int, float]] = {}
        self._warned = False

    def is_due(self, task_step: int) -> bool:
        return task_step == 1 or task_step % self.every == 0

    def write(self, step: int, task: Task, traces: Sequence[RoutingTrace]) -> None:
        """One line a router that weighs its experts; nothing for the others."""
        for name in traces[0].decisions if traces else []:
            measured = [measure(trace.decisions[name], trace) for trace in traces]
            found = [one for one in measured if one is not None]
            if not found:
                continue
            mean = {key: _average([one[key] for one in found]) for key in found[0]}
            weights: list[float] = mean["weights"]
            self._leading[name, task] = (weights.index(max(weights)), max(weights) / max(sum(weights), 1e-9))
            experts = traces[0].decisions[name].experts
            self.writer.write({"step": step, "task": task.value, "router": name, "experts": list(experts), **mean})
        self._check(step)

    def _check(self, step: int) -> None:
        names = {name for name, _ in self._leading}
        collapsed = [
            name
            for name in names
            if all((name, task) in self._leading for task in Task)
            and len({self._leading[name, task][0] for task in Task}) == 1
            and all(self._leading[name, task][1] > COLLAPSED for task in Task)
        ]
        if collapsed and not self._warned:
            self._warned = True
            self.warn(
                f"step {step}: routing has collapsed in {len(collapsed)} of {len(names)} routers: one expert takes "
                f"over {COLLAPSED:.0%} of both tasks; raise aux_loss_weight or weight_floor"
            )


def measure(decision: Routing, trace: RoutingTrace) -> dict[str, Any] | None:
    """Mean weights `[E]`, entropy over log E, number of active experts and share of decisions that have only one."""
    if decision.clean is None or trace.context is None:
        return None
    weights = decision.clean.detach()
    flat = weights.flatten(0, 1) if weights.shape[1] == 1 else weights[trace.context.mask.bool()]
    active = (flat > 0).sum(-1).float()
    normal = flat / flat.sum(-1, keepdim=True).clamp(min=1e-9)
    entropy = -torch.xlogy(normal, normal.clamp(min=1e-12)).sum(-1) / torch.tensor(float(flat.shape[-1])).log()
    return {
        "weights": flat.mean(0).tolist(),
        "entropy": float(entropy.mean()),
        "active_experts": float(active.mean()),
        "one_expert_share": float((active == 1).float().mean()),
    }


def _average(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [sum(column) / len(column) for column in zip(*values, strict=True)]
    return sum(values) / len(values)
