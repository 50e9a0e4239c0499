"""What the keys of runs are made from beside their settings: content of data and weights, precision, kind of device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch

from unimoer.config import ModelConfig, SuiteConfig, SuiteSpec
from unimoer.errors import UserError
from unimoer.evaluation.first_stage import candidates_fingerprint
from unimoer.model.backbone import resolve_dtype
from unimoer.runs.data import suite_data
from unimoer.types import Task


def precision(model: ModelConfig, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Of the frozen base, resolved."""
    return cast("Literal['float32', 'bfloat16']", str(resolve_dtype(model.dtype, device)).removeprefix("torch."))


def model_identity(content: str, model: ModelConfig, device: torch.device) -> str:
    """`RunSpec.identity` of a model that no training key names; `content` is a hash of its base or weights."""
    return f"{content} {precision(model, device)} {device.type}"


def check_content(what: str, found: Mapping[str, str], planned: Mapping[str, str]) -> None:
    """A run may be carried out later than it was planned, and elsewhere.

    Raises:
        UserError: what is there now is not what the run's keys were made from.
    """
    for name, content in planned.items():
        if found.get(name) != content:
            raise UserError(f"{what} '{name}': is not what this run was planned on; repeat the command")


def suite_spec(name: str, suite: SuiteConfig, tasks: tuple[Task, ...]) -> SuiteSpec:
    """A suite with the content of everything that it reads.

    Raises:
        UserError: a collection or a run file is missing or wrong.
    """
    collections = suite_data(suite)
    prints = {key: collection.dataset.fingerprint for key, collection in collections.items()}
    candidates = candidates_fingerprint(suite.first_stage, collections)
    return SuiteSpec(name=name, suite=suite, fingerprints=prints, candidates=candidates, tasks=tasks)
