"""How the gradients of both tasks become one, in steps that train both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unimoer.config.base import Strict


class SumConfig(Strict):
    """The gradient of the weighted sum of the losses."""

    type: Literal["sum"] = "sum"


class PCGradConfig(Strict):
    """Project conflicting gradients on each other's normal plane (Yu et al., NeurIPS 2020, arXiv 2001.06782)."""

    type: Literal["pcgrad"] = "pcgrad"


class CAGradConfig(Strict):
    """Near the mean gradient, the direction that helps the worse-off task most (Liu et al., arXiv 2110.14048)."""

    type: Literal["cagrad"] = "cagrad"
    c: float = Field(0.5, gt=0, lt=1)
    """How far the direction may stray from the mean gradient, in lengths of it; towards 0 it is the plain sum."""


class GradNormConfig(Strict):
    """Learned loss weights that even out the tasks' gradient norms (Chen et al., ICML 2018, arXiv 1711.02257)."""

    type: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(1.5, ge=0)
    """Restoring force: above 0, a task whose loss has fallen less gets the larger gradient."""
    lr: float = Field(0.025, gt=0)
    """Learning rate of the weights."""


class FAMOConfig(Strict):
    """Learned loss weights that even out the tasks' rates of improvement (Liu et al., NeurIPS 2023, arXiv 2306.03792).

    Needs a second forward pass of every batch, after the optimizer's step.
    """

    type: Literal["famo"] = "famo"
    lr: float = Field(0.025, gt=0)
    """Learning rate of the weights."""
    weight_decay: float = Field(0.01, ge=0)
    """Pulls the weights back to equal ones."""


GradientConfig = Annotated[
    SumConfig | PCGradConfig | CAGradConfig | GradNormConfig | FAMOConfig, Field(discriminator="type")
]
