"""Similarity-preserving distillation: images that excite the teacher alike should excite the student alike.

Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import similarity_preserving_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import relation_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Weight


class SPConfig(FeatureTermConfig):
    """task loss + weight |G_t - G_s|^2 / N^2 on the maps of the last stage."""

    name: Literal["sp"] = "sp"
    """The method."""
    weight: Weight = 3000.0
    """Weight of the term; it belongs to batches of 64, as the term shrinks like 1 / N."""


class SP(Term):
    """No heads: only the similarities of samples are compared, so widths and sizes may differ.

    >>> student = gankd.distill(student, teacher, real=train, method="sp")

    Loss: losses.similarity.similarity_preserving_loss
    """

    Config = SPConfig

    def __init__(self, config: SPConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *_ = relation_taps(setup, config, lambda taps: taps[-2:-1])

    def forward(self, outputs: Outputs) -> Tensor:
        return sum(
            similarity_preserving_loss(student_feature=student, teacher_feature=teacher)
            for student, teacher in zip(*self.gathered_features(outputs), strict=True)
        )
