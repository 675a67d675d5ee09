"""Where the teacher looks: the student's maps are high at the same positions, all channels together or one by one.

at: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928
nst: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219
"""

from typing import Literal

from torch import Tensor

from gankd.losses import attention_transfer_loss, nst_loss
from gankd.methods.setup import Outputs
from gankd.methods.taps import MapTerm
from gankd.methods.terms import FeatureTermConfig
from generators.settings import Count, Weight


class ATConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of the mean squared difference of attention maps)."""

    name: Literal["at"] = "at"
    """The method's name."""
    weight: Weight = 1000.0
    """Weight of the term."""
    power: Count = 2
    """Power of a map's entries before the mean over its channels; 4 stresses the strongest ones more."""


class AT(MapTerm):
    """Q = flatten(mean_c f^p) to norm 1; mean (Q_s - Q_t)^2, summed over the stages. No heads: widths may differ.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "at", "power": 4})

    Loss: losses.features.attention_transfer_loss
    """

    Config = ATConfig
    smallest = 2

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return attention_transfer_loss(student_features=student, teacher_features=teacher, p=self.config.power)


class NSTConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of the maximum mean discrepancy between channels)."""

    name: Literal["nst"] = "nst"
    """The method's name."""
    weight: Weight = 50.0
    """Weight of the term."""


class NST(MapTerm):
    """k(a, b) = (a . b)^2 of channels r of norm 1 over positions; mean k(t, t) + mean k(s, s) - 2 mean k(s, t), summed over
    the stages. No heads: widths may differ.

    >>> student = gankd.distill(student, teacher, real=train, method="nst")

    Loss: losses.features.nst_loss
    """

    Config = NSTConfig
    smallest = 2

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return nst_loss(student_features=student, teacher_features=teacher)
