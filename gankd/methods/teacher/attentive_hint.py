"""Attentive hints: a middle layer of the student follows the teacher's where the teacher's prediction can be trusted.

Saputra, de Gusmao, Almalioglu, Markham, Trigoni, "Distilling Knowledge From a Deep Pose Regressor Network", ICCV 2019,
arXiv 1908.00858.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import attentive_hint_loss
from gankd.methods.setup import Outputs
from gankd.methods.teacher.fitnet import FitNet, FitNetConfig
from gankd.methods.teacher.scalar_regression import TrustTerm
from gankd.tasks import REGRESSION


class AttentiveHintConfig(FitNetConfig):
    """task loss + weight mean c (r(s) - t)^2 on the maps of the second stage."""

    name: Literal["attentive_hint"] = "attentive_hint"
    """The method."""


class AttentiveHint(TrustTerm, FitNet):
    """FitNet's term with each sample weighted by c = clamp(1 - (teacher's prediction - y)^2 / eta, 0, 1).

    eta, the range of the teacher's squared errors over the training set, is measured before the first step.

    >>> student = gankd.distill(student, teacher, real=train, method="attentive_hint")

    Loss: losses.regression.attentive_hint_loss
    """

    Config = AttentiveHintConfig
    tasks = frozenset({REGRESSION})
    hint = "Use method fitnet."

    def forward(self, outputs: Outputs) -> Tensor:
        confidences = self.confidences(outputs)
        return sum(
            attentive_hint_loss(student_feature=regressor(student), teacher_feature=teacher, confidences=confidences)
            for regressor, student, teacher in zip(self.regressors, *self.features(outputs), strict=True)
        )
