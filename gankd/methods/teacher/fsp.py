"""FSP: the flow from layer to layer is the teacher's, learned first; then the student is trained on its task alone.

Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning", CVPR 2017.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import fsp_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import MapTerm
from gankd.methods.terms import FeatureTermConfig
from generators.settings import Positive, Weight


class FSPConfig(FeatureTermConfig):
    """First the sum over consecutive maps of mean (G_s - G_t)^2 alone, then the task loss alone."""

    name: Literal["fsp"] = "fsp"
    """The method's name."""
    weight: Weight = 50.0
    """Whether the term is used: 0 leaves it out, any other weight is the same, as the first stage minimises it alone."""
    task_weight: Positive = 1.0
    """Weight of the labels' loss, the only one in the second stage."""
    first_stage: Positive = 30 / 240
    """Steps of the first stage, before the training's own, as a share of them; its learning rate is constant."""


class FSP(MapTerm):
    """G[c, d] = mean over positions of a_c b_d for consecutive maps a, b (the stem's included); mean (G_s - G_t)^2, summed
    over the pairs. No heads: the student has the teacher's widths.

    Raises ValueError: maps of unlike widths, or fewer than two of them.

    >>> from copy import deepcopy  # a student of the teacher's widths
    >>> student = gankd.distill(deepcopy(teacher), teacher, real=train, method="fsp")

    Loss: losses.features.fsp_loss
    """

    Config = FSPConfig
    choose = staticmethod(lambda taps: taps[:-1])
    needs_equal_widths = True

    def __init__(self, config: FSPConfig, setup: Setup):
        super().__init__(config, setup)
        if len(self.student_taps) < 2:
            raise ValueError(
                "fsp describes the flow between consecutive maps and needs two of either network; name them in "
                "student_taps and teacher_taps."
            )
        for s, t, student, teacher in zip(self.student_taps, self.teacher_taps, *self.shapes, strict=True):
            if student[0] != teacher[0]:
                raise ValueError(
                    f"fsp needs a student of the teacher's widths, but '{s}' has {student[0]} channels and the teacher's "
                    f"'{t}' has {teacher[0]}; name student_taps and teacher_taps of like widths, or use method at."
                )
        self.first_stage_share, self.factor = config.first_stage, 0.0

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return fsp_loss(student_features=student, teacher_features=teacher)

    def first_stage_loss(self, outputs: Outputs) -> Tensor:
        return self(outputs)  # unweighted: 50 times it ends a student under SGD with a rate of 0.05
