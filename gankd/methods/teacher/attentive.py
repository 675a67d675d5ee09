"""Imitation of a regressor, and hints from its middle layer, as far as its prediction can be trusted.

attentive_imitation, attentive_hint: Saputra, de Gusmao, Almalioglu, Markham, Trigoni, "Distilling Knowledge From a Deep Pose
Regressor Network", ICCV 2019, arXiv 1908.00858. s, t, y as in `scalar_regression`.
"""

from typing import Literal

import torch
from torch import Tensor

from gankd.losses import attentive_hint_loss, teacher_confidence
from gankd.methods.setup import Outputs, Setup
from gankd.methods.teacher.fitnet import FitNet, FitNetConfig
from gankd.methods.teacher.scalar_regression import ScalarTerm, teacher_distances
from gankd.methods.terms import Term, TermConfig
from gankd.tasks import REGRESSION
from generators.settings import Weight


class TrustTerm(Term):
    """A term with each sample weighted by c = clamp(1 - (t - y)^2 / eta, 0, 1): as far as the teacher can be trusted.

    eta, the range of the teacher's squared errors over the training set, is measured before the first step.
    """

    reads_teacher_outputs = True

    def __init__(self, config: TermConfig, setup: Setup):
        super().__init__(config, setup)
        self.register_buffer("error_range", torch.tensor(torch.inf))  # not measured yet: nothing is held against t

    def prepare(self, setup: Setup) -> None:
        errors = teacher_distances(setup).square()
        self.error_range.copy_(errors.max() - errors.min())

    def confidences(self, outputs: Outputs) -> Tensor:
        """c of every sample, [N]."""
        return teacher_confidence(
            teacher_predictions=self.task.prediction(outputs.teacher),
            labels=self.task.standardize(outputs.labels.float()),
            error_range=self.error_range,
        )


class AttentiveImitationConfig(TermConfig):
    """task_weight * (s - y)^2 + weight * c (s - t)^2."""

    name: Literal["attentive_imitation"] = "attentive_imitation"
    """The method's name."""
    weight: Weight = 0.5
    """Weight of the imitation, the paper's 1 - alpha."""
    task_weight: Weight = 0.5
    """Weight of the labels' loss, the paper's alpha."""


class AttentiveImitation(TrustTerm, ScalarTerm):
    """mean of c (s - t)^2, c = clamp(1 - (t - y)^2 / eta, 0, 1): imitate the teacher as far as it can be trusted.

    eta, the range of the teacher's squared errors over the training set, is measured before the first step.

    >>> student = gankd.distill(student, teacher, real=train, method="attentive_imitation")

    Loss: losses.regression.attentive_imitation_loss
    """

    Config = AttentiveImitationConfig

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = (self.task.prediction(each) for each in (outputs.student, outputs.teacher))
        confidences = self.confidences(outputs)
        return attentive_hint_loss(student_feature=student, teacher_feature=teacher, confidences=confidences)


class AttentiveHintConfig(FitNetConfig):
    """task loss + weight mean c (r(s) - t)^2 on the maps of the second stage."""

    name: Literal["attentive_hint"] = "attentive_hint"
    """The method's name."""


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
