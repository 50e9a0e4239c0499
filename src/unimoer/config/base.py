"""The base class of every configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys are errors, defaults are checked too, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def changed(value: Any) -> Any:
    """Plain data of a configuration without the settings that are at their defaults; `type` always stays.

    A union's member is known by its `type` alone, which is a default of that member.
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: changed(found)
            for name, found in value
            if name == "type" or found != fields[name].get_default(call_default_factory=True)
        }
    if isinstance(value, dict):
        return {str(key): changed(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [changed(found) for found in value]
    return value
