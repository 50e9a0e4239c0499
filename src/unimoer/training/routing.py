"""What routing costs and how it is doing: losses that keep experts in use, and a monitor that sees them collapse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from unimoer.config.router import LearnedRouterConfig, RouterConfig
from unimoer.losses.balance import load_balance, mean_weights, z_loss
from unimoer.model.routing import Routing, RoutingTrace
from unimoer.tracking import JsonlWriter
from unimoer.types import Task

COLLAPSED = 0.95
"""Mean weight of one expert, in every task, from which a router counts as collapsed."""


class RoutingLosses:
    """Load balance over both tasks, z-loss, and the routers' own terms, as one loss a batch.

    A batch holds one task. Balancing it alone would push each task to use all experts alike, which is the opposite of
    what routing is for; so the other task's last mean weights stand beside it, without a gradient, and the balance is
    that of both. Until the other task has been seen there is none.
    """

    def __init__(self, config: RouterConfig | None) -> None:
        self.config = config
        self._seen: dict[Task, dict[str, Tensor]] = {}

    def __call__(self, task: Task, traces: Sequence[RoutingTrace]) -> tuple[Tensor | None, dict[str, float]]:
        """Weighted sum of the terms, or None when no router has any; and each term for the log.

        There, balance and z-loss are without their weights, and a router's own terms with theirs.
        """
        terms: dict[str, list[Tensor]] = defaultdict(list)
        own: dict[str, list[Tensor]] = defaultdict(list)
        others = [seen for other, seen in self._seen.items() if other is not task]
        names = list(traces[0].decisions) if traces else []
        for name in names:
            decisions = [(trace.decisions[name], trace) for trace in traces]
            for decision, _ in decisions:
                for label, loss in decision.losses.items():
                    own[label].append(loss / len(traces))
            if not _trains(self.config) or decisions[0][0].weights is None:
                continue
            if others and self.config.aux_loss_weight > 0:
                means = [_joint_weights(decisions), *(seen[name] for seen in others)]
                terms["load_balance"].append(load_balance(torch.stack(means).mean(0)))
            if self.config.z_loss_weight > 0:
                for decision, trace in decisions:
                    if decision.logits is not None and trace.context is not None:
                        terms["router_z"].append(z_loss(decision.logits, trace.context.mask) / len(traces))
        total = [self._weight(label) * torch.stack(found).sum() / len(names) for label, found in terms.items()]
        total += [torch.stack(found).sum() / len(names) for found in own.values()]
        log = {label: torch.stack(found).sum().item() / len(names) for label, found in {**terms, **own}.items()}
        return (torch.stack(total).sum() if total else None), log

    def remember(self, task: Task, traces: Sequence[RoutingTrace]) -> None:
        """Keep a batch's mean weights, for the balance of the other task's batches."""
        if not _trains(self.config) or self.config.aux_loss_weight == 0 or not traces:
            return
        with torch.no_grad():
            for name, decision in traces[0].decisions.items():
                if decision.weights is not None:
                    found = _joint_weights([(trace.decisions[name], trace) for trace in traces])
                    self._seen.setdefault(task, {})[name] = found

    def _weight(self, label: str) -> float:
        assert isinstance(self.config, LearnedRouterConfig)
        return self.config.aux_loss_weight if label == "load_balance" else self.config.z_loss_weight

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name: a resumed run balances against what the interrupted one had seen."""
        return {f"{task.value}|{name}": mean for task, seen in self._seen.items() for name, mean in seen.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._seen = {}
        for key, mean in state.items():
            task, name = key.split("|")
            self._seen.setdefault(Task(task), {})[name] = mean


def _trains(config: RouterConfig | None) -> TypeGuard[LearnedRouterConfig]:
    """A router that never learns has no losses: they would reach the experts of earlier layers alone."""
    return isinstance(config, LearnedRouterConfig) and config.learned


def _joint_weights(decisions: Sequence[tuple[Routing, RoutingTrace]]) -> Tensor:
    """Mean weights over several forward passes of one batch, each counted by its texts."""
    means, rows = [], []
    for decision, trace in decisions:
        assert decision.weights is not None
        assert trace.context is not None
        means.append(mean_weights(decision.weights, trace.context.mask))
        rows.append(float(len(decision.weights)))
    part = torch.tensor(rows, device=means[0].device) / sum(rows)
    return part @ torch.stack(means)


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
