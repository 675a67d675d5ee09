"""FitNet: a middle layer of the student, through a regressor, gives what a middle layer of the teacher gives.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.
"""

from typing import Literal

from torch import Tensor, nn

from gankd.losses import hint_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import ConvRegressor, MapTerm, stages
from gankd.methods.terms import FeatureTermConfig
from generators.settings import Weight


class FitNetConfig(FeatureTermConfig):
    """task loss + weight mean (r(s) - t)^2 on the maps of the second stage."""

    name: Literal["fitnet"] = "fitnet"
    """The method's name."""
    weight: Weight = 100.0
    """Weight of the term."""


class FitNet(MapTerm):
    """mean (r(s) - t)^2, r a convolution with batch norm and ReLU; on the second stage (of one stage: on that).

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "fitnet", "weight": 10})

    Loss: losses.features.hint_loss
    """

    Config = FitNetConfig
    choose = staticmethod(lambda taps: stages(taps)[:2][-1:])

    def __init__(self, config: FitNetConfig, setup: Setup):
        super().__init__(config, setup)
        self.regressors = nn.ModuleList(ConvRegressor(s, t) for s, t in zip(*self.shapes, strict=True))

    def forward(self, outputs: Outputs) -> Tensor:
        return sum(
            hint_loss(student_feature=regressor(student), teacher_feature=teacher)
            for regressor, student, teacher in zip(self.regressors, *self.features(outputs), strict=True)
        )
