"""Variational information distillation: the student's features tell as much as possible about the teacher's.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.losses import vid_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import map_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Weight

SMALLEST_VARIANCE = 1e-5


class VIDConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of -log of a Gaussian's density of the teacher's map, given the student's)."""

    name: Literal["vid"] = "vid"
    """The method."""
    weight: Weight = 1.0
    """Of the term."""
    initial_variance: Annotated[float, Field(gt=SMALLEST_VARIANCE)] = 5.0
    """Of every channel of the teacher, given the student's map; it is trained."""


class VariationalRegressor(nn.Module):
    """Mean and variance of a teacher's map, given the student's: three 1x1 convolutions and a scale a channel.

    `forward` returns the negative log density up to a constant, a scalar.
    """

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float):
        super().__init__()
        widths = (student_channels, teacher_channels, teacher_channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, teacher_channels, 1, bias=False) for width in widths)
        excess = initial_variance - SMALLEST_VARIANCE
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), excess + math.log(-math.expm1(-excess))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return vid_loss(
            student_feature=student,
            teacher_feature=teacher,
            regressor_weights=[convolution.weight for convolution in self.convolutions],
            log_scale=self.log_scale,  # softplus of it is the variance beyond the smallest
            eps=SMALLEST_VARIANCE,
        )


class VID(Term):
    """mean ((mu(s) - t)^2 / var + log var) / 2, summed over the stages; mu and var are trained with the student."""

    Config = VIDConfig

    def __init__(self, config: VIDConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *shapes = map_taps(setup, config)
        self.regressors = nn.ModuleList(
            VariationalRegressor(s[0], t[0], config.initial_variance) for s, t in zip(*shapes, strict=True)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        return sum(
            regressor(student, teacher)
            for regressor, student, teacher in zip(self.regressors, *self.features(outputs), strict=True)
        )
