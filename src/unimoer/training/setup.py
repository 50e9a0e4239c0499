"""From the specification of a run to the objects that the loop drives: the one place where they are wired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimoer.config import TrainSpec
from unimoer.data.collate import Collator
from unimoer.data.prepare import TrainingDomain
from unimoer.data.sampling import SamplerConfig, TaskSampler
from unimoer.model.unified import UnifiedModel
from unimoer.tracking import JsonlWriter, Tracker
from unimoer.training.combiner import Combiner
from unimoer.training.multitask import build_combiner
from unimoer.training.optimizer import Optimizer
from unimoer.training.parallel import ALONE, Group
from unimoer.training.probe import ConflictProbe
from unimoer.training.routing import RoutingLosses, RoutingMonitor
from unimoer.training.schedule import Step, plan_steps
from unimoer.training.state import Adapter, Counters, RandomNumbers, Stateful, latest_state, load_state, save_state
from unimoer.types import Task

PROBE_SEED_OFFSET = 1_000_003
"""The probe reads batches of its own: same data, other order."""

Domains = Mapping[str, TrainingDomain]


@dataclass
class Run:
    """Everything that takes part in a run, at the step that `counters` tell."""

    spec: TrainSpec
    model: UnifiedModel
    folder: Path
    group: Group
    order: Sequence[Step]
    optimizer: Optimizer
    samplers: dict[Task, TaskSampler]
    collator: Collator
    routing: RoutingLosses
    combiner: Combiner
    counters: Counters
    tracker: Tracker | None
    """As the monitor and the probe: None in all processes but the first, which writes."""
    monitor: RoutingMonitor | None
    probe: ConflictProbe | None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def parts(self) -> dict[str, Stateful]:
        """What has a state between two steps, by the name of its file."""
        parts: dict[str, Stateful] = {
            "adapter": Adapter(self.model),
            "optimizer": self.optimizer,
            "routing": self.routing,
            "gradients": self.combiner,
            "rng": RandomNumbers(self.model.device, self.group),
            "counters": self.counters,
            **{f"{task.value}_sampler": sampler for task, sampler in self.samplers.items()},
        }
        return parts if self.probe is None else {**parts, "probe": self.probe}

    def save(self) -> None:
        save_state(self.checkpoints, self.counters.step, self.parts(), self.group)

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one, and forget what was logged after it.

        Raises:
            UserError: a file is missing or damaged, or a state does not fit.
        """
        found = latest_state(self.checkpoints) if self.group.is_main else None
        name = self.group.agree(None if found is None else found.name)
        if name is not None:
            load_state(self.checkpoints / name, self.parts())
        for log in self._logs():
            log.rewind(self.counters.step)

    def close(self) -> None:
        for log in self._logs():
            log.close()

    def _logs(self) -> Iterable[Tracker | JsonlWriter]:
        logs = (
            self.tracker,
            None if self.monitor is None else self.monitor.writer,
            None if self.probe is None else self.probe.writer,
        )
        return [log for log in logs if log is not None]


def build(
    spec: TrainSpec,
    model: UnifiedModel,
    domains: Domains,
    folder: Path,
    *,
    trackers: Sequence[str] = (),
    warn: Callable[[str], None] = lambda message: None,
    group: Group = ALONE,
) -> Run:
    """A run before its first step."""
    settings = spec.training
    collator = build_collator(spec, model, domains)
    weights = {Task.EMBEDDING: 1.0, Task.RERANKING: settings.ranking_weight}
    is_routed, is_probed = model.config.adapter.is_routed, spec.is_joint and settings.probe.every > 0
    monitor = None
    if is_routed and group.is_main:
        monitor = RoutingMonitor(settings.routing_every, JsonlWriter(folder / "routing.jsonl"), warn)
    return Run(
        spec=spec,
        model=model,
        folder=folder,
        group=group,
        order=plan_steps(spec.steps, spec.schedule, settings.staged),
        optimizer=Optimizer(model, settings.optimizer, spec.tasks),
        samplers=build_samplers(spec, domains),
        collator=collator,
        routing=RoutingLosses(model.config.adapter.router),
        combiner=build_combiner(settings.gradients, spec.tasks, weights, group),
        counters=Counters(task_steps={task.value: 0 for task in spec.tasks}),
        tracker=Tracker(folder, trackers) if group.is_main else None,
        monitor=monitor,
        probe=build_probe(spec, domains, collator, folder) if is_probed and group.is_main else None,
    )


def build_collator(spec: TrainSpec, model: UnifiedModel, domains: Domains) -> Collator:
    return Collator(
        model.prompter,
        {name: domain.dataset for name, domain in domains.items()},
        instructions={name: domain.config.instruction for name, domain in domains.items()},
        padding=model.config.padding,
        multiple=spec.training.pad_to_multiple,
        head=model.config.reranking.head,
    )


def build_samplers(spec: TrainSpec, domains: Domains) -> dict[Task, TaskSampler]:
    """One stream of batches for each task of a run: the same for every arm of a seed."""
    training = spec.training
    samplers = {}
    for task in spec.tasks:
        wanted = training.embedding if task is Task.EMBEDDING else training.reranking
        batches = spec.steps[task] * training.optimizer.accumulation
        config = SamplerConfig(wanted.batch_size, wanted.negatives, round(wanted.random_until * batches))
        samplers[task] = _sampler(task, domains, config, spec.seed)
    return samplers


def build_probe(spec: TrainSpec, domains: Domains, collator: Collator, folder: Path) -> ConflictProbe:
    """The gradient probe of a joint run, on groups with mined negatives."""
    training = spec.training
    negatives = {Task.EMBEDDING: training.embedding.negatives, Task.RERANKING: training.reranking.negatives}
    configs = {task: SamplerConfig(training.probe.batch_size, negatives[task], 0) for task in Task}
    samplers = {
        name: {task: _sampler(task, {name: domain}, configs[task], spec.seed + PROBE_SEED_OFFSET) for task in Task}
        for name, domain in domains.items()
    }
    weights = {name: domain.config.weight for name, domain in domains.items()}
    writer = JsonlWriter(folder / "gradient_conflicts.jsonl")
    return ConflictProbe(training.probe.every, samplers, weights, collator, writer)


def _sampler(task: Task, domains: Domains, config: SamplerConfig, seed: int) -> TaskSampler:
    return TaskSampler(
        task,
        {name: domain.examples for name, domain in domains.items()},
        {name: sorted(domain.dataset.corpus) for name, domain in domains.items()},
        {name: domain.config.weight for name, domain in domains.items()},
        config,
        seed,
        {name: domain.dataset.families for name, domain in domains.items()},
    )
