"""Bring one run to its end from wherever it stands: train what is not trained, evaluate what is not evaluated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from unimoer.config import BM25, RANDOM, RunSpec, TrainSpec
from unimoer.errors import UserError
from unimoer.evaluation.evaluate import System
from unimoer.evaluation.reference import load_encoder
from unimoer.evaluation.serving import Traffic, serving_costs
from unimoer.model.checkpoint import load_tensors, load_weights, save_model
from unimoer.model.identity import base_identity
from unimoer.model.unified import UnifiedModel
from unimoer.provenance import environment
from unimoer.runs import data
from unimoer.runs.evaluate import evaluate
from unimoer.runs.events import Event, Watch, ignore
from unimoer.runs.folder import FINAL, check_same, is_trained, locked, moments, write_spec
from unimoer.runs.identity import check_content, model_identity
from unimoer.runs.memory import peak_memory_mb, reset_peak_memory
from unimoer.schema import RunStatus, read_record, write_record
from unimoer.schema.run import ServingCosts, TrainingSummary
from unimoer.training.loop import train
from unimoer.training.parallel import Group, connect
from unimoer.training.state import Counters, drop_states
from unimoer.types import Task


def execute(spec: RunSpec, folder: Path, watch: Watch = ignore) -> None:
    """Train and evaluate one run in `folder`; a repeated call goes on where the last one stopped.

    Started by `torchrun` on several devices, every process calls this: all train, and the first one locks, writes,
    evaluates and speaks.

    Raises:
        UserError: the folder is in use or holds another run, the data or the model is wrong, or training diverged.
    """
    group, device = connect(torch.device(spec.device))
    if not group.is_main:
        if spec.train is not None:
            _trained(spec, spec.train, folder, device, ignore, group)
        return
    with locked(folder):
        check_same(spec, folder)
        reset_peak_memory(device)
        write_spec(folder, spec)
        status = _begin(spec, folder)
        model = None
        if spec.train is not None:
            model = _trained(spec, spec.train, folder, device, watch, group)
            status = status.model_copy(update={"training": read_record(TrainingSummary, folder / "training.json")})

        def spent(seconds: float) -> None:
            nonlocal status
            status = status.model_copy(update={"eval_seconds": status.eval_seconds + seconds})
            write_record(folder / "status.json", status)

        def load(moment: str) -> System:
            if spec.arm in (BM25, RANDOM):
                return spec.arm
            watch(Event("say", f"{spec.arm} seed {spec.seed}", "loading the model"))
            if model is None:
                if spec.model is None:
                    return load_encoder(spec.arm, device)
                found = model_identity(base_identity(spec.model), spec.model, device)
                check_content("model.base", {spec.model.base: found}, {spec.model.base: spec.identity})
                return UnifiedModel(spec.model, device, seed=spec.seed)
            _load_moment(model, folder, moment)
            return model

        evaluate(spec, folder, load, watch, spent)
        # Training may have been another process: its peak counts too.
        trained_peak = status.training.peak_memory_mb if status.training is not None else 0.0
        update: dict[str, Any] = {
            "state": "done",
            "peak_memory_mb": max(peak_memory_mb(device), trained_peak, status.peak_memory_mb),
        }
        if model is not None and status.serving is None and spec.latency_requests:
            watch(Event("say", f"{spec.arm} seed {spec.seed}", "timing single requests"))
            _load_moment(model, folder, FINAL)
            update["serving"] = _serving(spec, model)
        write_record(folder / "status.json", status.model_copy(update=update))


def _begin(spec: RunSpec, folder: Path) -> RunStatus:
    """Provenance and status; evaluations that an earlier call has done took their time too."""
    if not (folder / "env.json").exists():
        prints = {} if spec.train is None else spec.train.fingerprints
        found = environment(spec.device).model_copy(update={"key": spec.key, "seed": spec.seed, "data": prints})
        write_record(folder / "env.json", found)
    status = RunStatus(state="running", arm=spec.arm, seed=spec.seed, variant=spec.variant)
    if (folder / "status.json").exists():
        status = read_record(RunStatus, folder / "status.json").model_copy(update={"state": "running"})
    write_record(folder / "status.json", status)
    return status


def _trained(
    spec: RunSpec, settings: TrainSpec, folder: Path, device: torch.device, watch: Watch, group: Group
) -> UnifiedModel:
    """The run's model at the end of its training, which is done now if it was not."""
    name = f"{spec.arm} seed {spec.seed}"
    watch(Event("say", name, "loading the model"))
    base = settings.model.base
    check_content("model.base", {base: base_identity(settings.model)}, {base: settings.base})
    model = UnifiedModel(settings.model, device, seed=settings.seed)
    done = is_trained(folder) if group.is_main else False
    if group.agree("trained" if done else None) is not None:
        for task, count in settings.steps.items():
            watch(Event("skip", work=f"train {task}", units=count))
        if group.is_main:
            _load_moment(model, folder, FINAL)
            drop_states(folder / "checkpoints")
        return model
    watch(Event("say", name, "preparing data"))
    domains = data.training_data(settings.data)
    found = {name: domain.fingerprint for name, domain in domains.items()}
    check_content("data.domains", found, settings.fingerprints)
    counters = train(
        settings,
        model,
        domains,
        folder,
        keep=[step for _, step in moments(spec) if step is not None],
        trackers=spec.trackers,
        progress=_Steps(watch, f"{name}: training") if group.is_main else None,
        warn=lambda message: watch(Event("note", f"{name}, {message}")),
        group=group,
    )
    if group.is_main:
        write_record(folder / "training.json", _summary(settings, model, counters, device))
        save_model(model, folder / "checkpoints" / FINAL)
        drop_states(folder / "checkpoints")
    return model


def _load_moment(model: UnifiedModel, folder: Path, moment: str) -> None:
    file = folder / "checkpoints" / moment / "adapter.safetensors"
    if not file.exists():
        raise UserError(
            f"{folder}: has no weights of '{moment}': they are kept while a run trains; evaluate without that "
            "checkpoint, or train in another --output"
        )
    load_weights(model, load_tensors(file), file)
    model.eval()


class _Steps:
    """Turns the loop's steps into events."""

    def __init__(self, watch: Watch, title: str) -> None:
        self.watch, self.title = watch, title
        self._last = time.perf_counter()
        self._first = True

    def __call__(self, step: int, total: int, counters: Counters, task: Task, detail: str) -> None:
        now = time.perf_counter()
        if self._first:
            # Steps that an earlier call has done.
            for name, done in counters.task_steps.items():
                self.watch(Event("skip", work=f"train {name}", units=done - (name == task.value)))
            self._first = False
        self.watch(Event("spent", work=f"train {task}", units=1, seconds=now - self._last))
        self._last = now
        self.watch(Event("say", self.title, f"step {step}/{total} {detail}"))


def _summary(settings: TrainSpec, model: UnifiedModel, counters: Counters, device: torch.device) -> TrainingSummary:
    task = settings.tasks[0] if len(settings.tasks) == 1 else None
    return TrainingSummary(
        steps=counters.step,
        tokens=counters.tokens,
        tokens_per_second=counters.tokens / counters.seconds if counters.seconds else 0.0,
        padding_waste=1 - counters.tokens / counters.computed_tokens if counters.computed_tokens else 0.0,
        train_seconds=counters.seconds,
        peak_memory_mb=peak_memory_mb(device),
        trainable_parameters=sum(parameter.numel() for parameter in model.trainable(task).values()),
        router_moved=model.router_moved(),
    )


def _serving(spec: RunSpec, model: UnifiedModel) -> ServingCosts:
    """What the model costs as it would be served; it cannot be trained or evaluated afterwards."""
    suite = spec.suites[0].suite
    traffic = [
        Traffic(one.dataset, sorted(one.qrels), data.bm25(suite, name), one.config.instruction)
        for name, one in data.suite_data(suite).items()
    ]
    costs = serving_costs(
        model.for_inference(), traffic, spec.tasks, requests=spec.latency_requests, depth=suite.rerank_depth
    )
    return ServingCosts(**costs)
