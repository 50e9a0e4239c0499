"""The choice of a method by its type."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from unimoer.config.gradients import CAGradConfig, FAMOConfig, GradientConfig, GradNormConfig, PCGradConfig, SumConfig

ADAPTER: TypeAdapter[Any] = TypeAdapter(GradientConfig)


@pytest.mark.parametrize("default", [SumConfig(), PCGradConfig(), CAGradConfig(), GradNormConfig(), FAMOConfig()])
def test_the_type_alone_gives_the_defaults_of_the_papers(default: Any) -> None:
    assert ADAPTER.validate_python({"type": default.type}) == default
    assert ADAPTER.validate_python(default.model_dump(mode="json")) == default


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "mgda"},
        {"type": "pcgrad", "c": 0.5},
        {"type": "cagrad", "c": 0.0},
        {"type": "cagrad", "c": 1.0},
        {"type": "gradnorm", "alpha": -1},
        {"type": "famo", "lr": 0},
    ],
    ids=str,
)
def test_what_no_method_takes_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)
