"""Neuron selectivity transfer: the student's channels respond to positions as the teacher's do.

Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import nst_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import map_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Weight


class NSTConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of the maximum mean discrepancy between channels)."""

    name: Literal["nst"] = "nst"
    """The method."""
    weight: Weight = 50.0
    """Weight of the term."""


class NST(Term):
    """k(a, b) = (a . b)^2 of channels r of norm 1 over positions; mean k(t, t) + mean k(s, s) - 2 mean k(s, t), summed over
    the stages. No heads: widths may differ.

    >>> student = gankd.distill(student, teacher, real=train, method="nst")

    Loss: losses.features.nst_loss
    """

    Config = NSTConfig

    def __init__(self, config: NSTConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *_ = map_taps(setup, config, smallest=2)

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return nst_loss(student_features=student, teacher_features=teacher)
