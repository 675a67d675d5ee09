"""Attention transfer: the student looks where the teacher looks.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import attention_transfer_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import map_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Count, Weight


class ATConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of the mean squared difference of attention maps)."""

    name: Literal["at"] = "at"
    """The method."""
    weight: Weight = 1000.0
    """Weight of the term."""
    power: Count = 2
    """Power of a map's entries before the mean over its channels; 4 stresses the strongest ones more."""


class AT(Term):
    """Q = flatten(mean_c f^p) to norm 1; mean (Q_s - Q_t)^2, summed over the stages. No heads: widths may differ.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "at", "power": 4})

    Loss: losses.features.attention_transfer_loss
    """

    Config = ATConfig

    def __init__(self, config: ATConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *_ = map_taps(setup, config, smallest=2)

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return attention_transfer_loss(student_features=student, teacher_features=teacher, p=self.config.power)
