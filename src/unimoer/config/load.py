"""YAML and dotted overrides in, a checked configuration out; every mistake is one line that names its field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from unimoer.config.base import Strict
from unimoer.config.model import ModelConfig
from unimoer.config.rag import RagConfig
from unimoer.config.study import StudyConfig
from unimoer.errors import UserError, did_you_mean

Config = TypeVar("Config", bound=Strict)


def load_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a YAML file and apply overrides such as `training.optimizer.lr=1e-3` or `seeds=[1,2]`.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown, a value has the wrong type or range.
    """
    return parse_config(_read(path, overrides), str(path), overrides)


def load_rag(path: Path, overrides: Sequence[str] = ()) -> RagConfig:
    """As `load_config`, of an experiment with retrieval-augmented generation."""
    return parse_rag(_read(path, overrides), str(path), overrides)


def _read(path: Path, overrides: Sequence[str]) -> Any:
    """Plain data of a file, with overrides applied and references resolved."""
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: expected keys and values at the top level")
    try:
        merged = OmegaConf.merge(loaded, *(_parse_override(override) for override in overrides))
        return OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def _parse_override(override: str) -> DictConfig:
    key, separator, _ = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: write key=value, for example training.optimizer.lr=1e-3")
    try:
        return OmegaConf.from_dotlist([override])
    except (YAMLError, OmegaConfBaseException):
        raise UserError(
            f"--set {override}: the value of {key} cannot be read; check brackets and quotes, as in 'seeds=[42,123]'"
        ) from None


def parse_config(content: Any, where: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Validate plain data; `where` names its origin in messages, unless an override is to blame."""
    return _parse(StudyConfig, content, where, overrides)


def parse_rag(content: Any, where: str, overrides: Sequence[str] = ()) -> RagConfig:
    """As `parse_config`, of an experiment with retrieval-augmented generation."""
    return _parse(RagConfig, content, where, overrides)


def _parse(model: type[Config], content: Any, where: str, overrides: Sequence[str]) -> Config:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected keys and values at the top level")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        to_blame = _to_blame(error, overrides)
        if to_blame is not None:
            where = f"--set {to_blame}"
        raise UserError(f"{where}: {_explain(error, model)}") from error


def _to_blame(error: ValidationError, overrides: Sequence[str]) -> str | None:
    """The override that set the field of the first problem, or a part of it, or what it is part of."""
    first = _first(error)
    # A rule over several fields has no place of its own: its message begins with the field.
    field = [str(part) for part in first["loc"]] or first["msg"].removeprefix("Value error, ").split(":")[0].split(".")
    for override in overrides:
        key = override.partition("=")[0].split(".")
        # A union's tag stands in the path of a problem and not in the key.
        if key == [part for part in field if part in key][: len(key)] or (field and field == key[: len(field)]):
            return override
    return None


def parse_model(content: Any, where: str) -> ModelConfig:
    """Validate the model's part alone, as a checkpoint holds it."""
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, ModelConfig)}") from error


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem, as `field: what is wrong; what to do`."""
    first = _first(error)
    path = [str(part) for part in first["loc"]]
    field = ".".join(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key{did_you_mean(path[-1], _keys_beside(path, root))}{more}"
    if first["type"] == "missing":
        return f"{field}: required, but missing{more}"
    if first["type"] == "union_tag_not_found":
        return f"{field}.type: required, but missing{more}"
    if first["type"] == "union_tag_invalid":
        tag, known = first["ctx"]["tag"], [name.strip("'") for name in first["ctx"]["expected_tags"].split(", ")]
        return f"{field}.type: unknown '{tag}'{did_you_mean(tag, known)}{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    text = f"{message[:1].lower()}{message[1:]}{given}{more}"
    return f"{field}: {text}" if field else text


def _first(error: ValidationError) -> ErrorDetails:
    """The problem to show: a misspelt key is a missing one too, and only "unknown key" says what to do."""
    return next((one for one in error.errors() if one["type"] == "extra_forbidden"), error.errors()[0])


def _keys_beside(path: Sequence[str], root: type[BaseModel]) -> list[str]:
    """Valid keys at the level where `path` ends, found by walking the models."""
    models: list[type[BaseModel]] = [root]
    for part in path[:-1]:
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        # A part that is no field is a dictionary's key or a union's tag: the models found so far still stand.
        models = [model for annotation in fields for model in _models_in(annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
