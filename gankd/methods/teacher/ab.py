"""AB: neurons of the student fire where the teacher's do, learned first; then the student is trained on its task alone.

Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
arXiv 1811.03233.
"""

from typing import Literal

from torch import Tensor, nn

from gankd.losses import activation_boundary_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import ConvRegressor, map_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Positive, Weight


class ABConfig(FeatureTermConfig):
    """First the sum over stages of a hinge on the signs before the ReLU alone, then the task loss alone."""

    name: Literal["ab"] = "ab"
    """The method."""
    weight: Weight = 1.0
    """0 leaves the term out. Any other weight is the same: the first stage minimises the term alone, unweighted."""
    task_weight: Positive = 1.0
    """Weight of the labels' loss, the only one in the second stage."""
    margin: Positive = 1.0
    """How far beyond zero the student's maps should be where the teacher's are on one side of it."""
    first_stage: Positive = 30 / 240
    """Steps of the first stage, before the training's own, as a share of them; its learning rate is constant."""


class AB(Term):
    """max(m + s, 0)^2 where t <= 0 and max(m - s, 0)^2 where t > 0, summed and halved from stage to stage upwards, of maps
    before the ReLU. The student's go through connectors (where its shapes differ), which the second stage leaves alone.

    >>> student = gankd.distill(student, teacher, real=train, method="ab")

    Loss: losses.activations.activation_boundary_loss
    """

    Config = ABConfig
    first_stage_modules = ("connectors",)

    def __init__(self, config: ABConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *shapes = map_taps(setup, config, preact=True)
        self.connectors = nn.ModuleList(
            nn.Identity() if s == t else ConvRegressor(s, t, relu=False) for s, t in zip(*shapes, strict=True)
        )
        self.first_stage_share, self.factor = config.first_stage, 0.0

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return activation_boundary_loss(
            student_features=[connect(s) for connect, s in zip(self.connectors, student, strict=True)],
            teacher_features=teacher,
            margin=self.config.margin,
        )

    def first_stage_loss(self, outputs: Outputs) -> Tensor:
        return self(outputs)
