"""The base class of every configuration."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys are errors, defaults are checked too, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
