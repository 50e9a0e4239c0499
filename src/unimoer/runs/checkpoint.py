"""Evaluate a checkpoint on data of the user's choice, through the same path as a study's runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from unimoer.assets.released import RELEASED
from unimoer.config import BM25, RANDOM, UNTRAINED, CollectionConfig, ModelConfig, RunSpec, SuiteConfig, SuiteSpec
from unimoer.errors import UserError
from unimoer.evaluation.suites import collection_of, list_collections
from unimoer.files import write_json, write_text
from unimoer.model.checkpoint import load_model, read_description
from unimoer.model.identity import base_identity
from unimoer.model.unified import UnifiedModel
from unimoer.runs.data import forget, lacking
from unimoer.runs.evaluate import evaluate
from unimoer.runs.events import Event, Watch
from unimoer.runs.folder import checkpoint_folder, expected, read_spec, run_of, trained_tasks
from unimoer.runs.identity import model_identity, suite_spec
from unimoer.schema import EvaluationSummary, read_record
from unimoer.types import Task

TRAINED = "trained"
"""The system's name where a checkpoint lies in no run folder."""


def suite_of(
    run: Path, sources: Sequence[str] | None, suite: str | None, common: SuiteConfig, *, split_identifiers: bool = False
) -> SuiteConfig:
    """What to evaluate on: sources by name, a suite, or what the run was evaluated on; `common` changes the latter
    where it says something. `split_identifiers` is for the BM25 of sources; embedded ones bring it where they need it.

    Raises:
        UserError: nothing is named and the run has no configuration, or two sources have one name.
    """
    if split_identifiers and not sources:
        raise UserError("--split-identifiers: goes with --data; a suite's collections say it themselves")
    if sources and suite:
        raise UserError("--data and --suite: name collections or a suite, not both")
    if suite is not None:
        return common.model_copy(update={"collections": suite})
    if sources:
        names = [_name(source) for source in sources]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"--data: two sources are named '{twice}', and results of one would replace the other's")
        found = {name: collection_of(source) for name, source in zip(names, sources, strict=True)}
        if split_identifiers:
            found = {name: one.model_copy(update={"split_identifiers": True}) for name, one in found.items()}
        return common.model_copy(update={"collections": found})
    place = run_of(checkpoint_folder(run))
    spec = read_spec(place) if place is not None else None
    if spec is None:
        raise UserError(f"{run}: no config.yaml to take collections from; name them with --data or --suite")
    changes = {name: getattr(common, name) for name in common.model_fields_set}
    own = spec.suites[0].suite
    if not isinstance(own.collections, str):
        # What a collection says itself would win over what was asked for.
        said = {name: value for name, value in changes.items() if name in CollectionConfig.model_fields}
        changes["collections"] = {name: one.model_copy(update=said) for name, one in own.collections.items()}
    return own.model_copy(update=changes)


def scores_folder(run: Path, output: Path | None) -> Path:
    """Where `evaluate_checkpoint` puts a folder for each system."""
    folder = checkpoint_folder(run)
    if folder in RELEASED.values():
        # Nothing is written into the package.
        return output or Path("runs") / folder.name
    return output or (run_of(folder) or folder) / "extra"


def evaluate_checkpoint(
    run: Path,
    suite: SuiteConfig,
    *,
    tasks: Sequence[Task] | None,
    output: Path | None,
    device: torch.device,
    watch: Watch,
    references: bool = True,
    trec: Path | None = None,
) -> list[EvaluationSummary]:
    """Evaluate the checkpoint, and beside it BM25, a random order and the untrained base; what is there is read.

    Scores lie at `OUTPUT/<system>/eval/...`; without `output`, below the run itself. The checkpoint's own rankings are
    also written to `trec`, as `TASK/COLLECTION.trec`.

    Raises:
        UserError: no checkpoint, wrong data, no judged query, or a task that the run was not trained for.
    """
    forget()
    folder = checkpoint_folder(run)
    place = run_of(folder)
    trained = trained_tasks(folder)
    wanted = tuple(tasks or trained)
    untrained = [task for task in wanted if task not in trained]
    if untrained:
        raise UserError(f"{run}: was not trained for {untrained[0]}; leave --task out, or name {trained[0]}")
    model = read_description(folder)["model"]
    watch(Event("say", "preparing data", ", ".join(list_collections(suite))))
    named = suite_spec("extra", suite, wanted)
    for line in lacking(suite):
        watch(Event("note", line))
    spec = read_spec(place) if place is not None else None
    # The head that the run began with, where that is known: a learned one starts at random.
    seed = spec.seed if spec is not None else 0
    found: list[EvaluationSummary] = []
    root = scores_folder(run, output)
    own = spec.arm if spec is not None else TRAINED
    for arm in (*((RANDOM, BM25, UNTRAINED) if references else ()), own):
        found += _system(arm, seed, model, folder, named, root / arm, device, watch)
    if trec is not None:
        for one in found:
            if one.arm == own:
                [ranking] = (root / own).glob(f"eval/extra-{one.key}/final/{one.dataset}/{one.task}/run.trec")
                write_text(trec / one.task / f"{one.dataset}.trec", ranking.read_text(encoding="utf-8"))
    write_json(root / "suite.json", suite.model_dump(mode="json"))
    return sorted(found, key=lambda one: (one.dataset, one.task))


def _system(
    arm: str,
    seed: int,
    model: ModelConfig,
    folder: Path,
    suite: SuiteSpec,
    target: Path,
    device: torch.device,
    watch: Watch,
) -> list[EvaluationSummary]:
    needs = arm not in (RANDOM, BM25)
    content = base_identity(model)
    if arm != UNTRAINED:
        # Not the run's training key: its checkpoints on the way have other weights.
        content += f" {hashlib.sha256((folder / 'adapter.safetensors').read_bytes()).hexdigest()}"
    spec = RunSpec(
        arm=arm,
        seed=seed if needs else 0,
        model=model if needs else None,
        identity=model_identity(content, model, device) if needs else "",
        suites=(suite,),
        device=str(device),
    )

    def load(moment: str) -> UnifiedModel | str:
        if not needs:
            return arm
        watch(Event("say", f"loading the {arm} model", str(folder)))
        return UnifiedModel(model, device, seed=seed) if arm == UNTRAINED else load_model(folder, device)

    evaluate(spec, target, load, watch, lambda seconds: None)
    return [read_record(EvaluationSummary, one.folder / "metrics.json") for one in expected(target, spec)]


def _name(source: str) -> str:
    """A folder name for a source: the name of its folder, or the last part of its id, without what no name may hold."""
    place = Path(source).expanduser()
    last = place.resolve().name if place.is_dir() else source.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-") or "data"
