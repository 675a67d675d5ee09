"""Variational information distillation: the student's features tell as much as possible about the teacher's.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.losses import vid_loss
from gankd.losses.features import map_pairs, matched
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import MapTerm
from gankd.methods.terms import FeatureTermConfig
from generators.settings import Weight

SMALLEST_VARIANCE = 1e-5


class VIDConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of -log of a Gaussian's density of the teacher's map, given the student's)."""

    name: Literal["vid"] = "vid"
    """The method's name."""
    weight: Weight = 1.0
    """Weight of the term."""
    initial_variance: Annotated[float, Field(gt=SMALLEST_VARIANCE)] = 5.0
    """Variance at first of every channel of the teacher, given the student's map; it is trained."""


class VariationalRegressor(nn.Module):
    """Mean and variance of a teacher's map, given the student's: three 1x1 convolutions and a scale a channel.

    `forward` returns the negative log density up to a constant, a scalar, of maps that are averaged to the smaller of
    their sizes before.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        initial_variance: float,
        smallest_variance: float = SMALLEST_VARIANCE,
    ):
        super().__init__()
        self.smallest_variance = smallest_variance
        widths = (student_channels, teacher_channels, teacher_channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, teacher_channels, 1, bias=False) for width in widths)
        excess = initial_variance - smallest_variance
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), excess + math.log(-math.expm1(-excess))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        ((mean, teacher),) = map_pairs([student], [teacher])
        mean, teacher = matched(mean, teacher)
        with torch.autocast(mean.device.type, enabled=False):
            for depth, convolution in enumerate(self.convolutions):
                mean = convolution(mean.relu() if depth else mean)  # [N, C_t, H, W]
        return vid_loss(
            student_feature=mean, teacher_feature=teacher, log_scale=self.log_scale, eps=self.smallest_variance
        )


class VID(MapTerm):
    """mean ((mu(s) - t)^2 / var + log var) / 2, summed over the stages; mu and var are trained with the student.

    >>> student = gankd.distill(student, teacher, real=train, method="vid")

    Loss: losses.features.vid_loss
    """

    Config = VIDConfig

    def __init__(self, config: VIDConfig, setup: Setup):
        super().__init__(config, setup)
        self.regressors = nn.ModuleList(
            VariationalRegressor(s[0], t[0], config.initial_variance) for s, t in zip(*self.shapes, strict=True)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        return sum(
            regressor(student, teacher)
            for regressor, student, teacher in zip(self.regressors, *self.features(outputs), strict=True)
        )
