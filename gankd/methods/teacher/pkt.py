"""Probabilistic knowledge transfer: the student finds the same neighbours as probable as the teacher does.

Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import pkt_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import relation_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Weight


class PKTConfig(FeatureTermConfig):
    """task loss + weight mean P_t log(P_t / P_s) on the pooled features."""

    name: Literal["pkt"] = "pkt"
    """The method."""
    weight: Weight = 30000.0
    """Weight of the term; it belongs to batches of 64, as the term shrinks like 1 / N."""


class PKT(Term):
    """P: rows of (1 + cosine) / 2 between samples, divided by their sum; mean P_t log(P_t / P_s). No heads.

    >>> student = gankd.distill(student, teacher, real=train, method="pkt")

    Loss: losses.similarity.pkt_loss
    """

    Config = PKTConfig

    def __init__(self, config: PKTConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *_ = relation_taps(setup, config, lambda taps: taps[-1:])

    def forward(self, outputs: Outputs) -> Tensor:
        return sum(
            pkt_loss(student_feature=student.flatten(1), teacher_feature=teacher.flatten(1))
            for student, teacher in zip(*self.gathered_features(outputs), strict=True)
        )
