"""Relational knowledge distillation: distances and angles between the samples of a batch follow the teacher's.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import rkd_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import relation_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Weight


class RKDConfig(FeatureTermConfig):
    """task loss + weight (distance_weight * distance term + angle_weight * angle term) on the pooled features."""

    name: Literal["rkd"] = "rkd"
    """The method."""
    weight: Weight = 1.0
    """Weight of the term."""
    distance_weight: Weight = 25.0
    """Weight of the distances between two samples."""
    angle_weight: Weight = 50.0
    """Weight of the angles that two samples span at a third; their memory grows with the cube of the batch."""


class RKD(Term):
    """Smooth-L1 between D_s and D_t (distances over their mean) and between A_s and A_t (cosines of angles). No heads.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "rkd", "angle_weight": 0})

    Loss: losses.similarity.rkd_loss
    """

    Config = RKDConfig

    def __init__(self, config: RKDConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *_ = relation_taps(setup, config, lambda taps: taps[-1:])

    def forward(self, outputs: Outputs) -> Tensor:
        weights = {"distance_weight": self.config.distance_weight, "angle_weight": self.config.angle_weight}
        return sum(
            rkd_loss(student_feature=student, teacher_feature=teacher, **weights)
            for student, teacher in zip(*self.gathered_features(outputs), strict=True)
        )
