"""SAD: every stage looks where the next deeper one looks.

Hou, Ma, Liu, Loy, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019,
arXiv 1908.00821.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor

from gankd.losses import self_attention_loss
from gankd.methods.branches import StagesTermConfig, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from generators.settings import Weight


class SADConfig(StagesTermConfig):
    """Task loss + weight * sum over neighbouring stages of the squared difference of attention."""

    name: Literal["sad"] = "sad"
    """The method."""
    weight: Weight = 1000.0
    """Weight of the term."""


class SAD(Term):
    """sum over stages l of mean (at(F_l) - [at(F_l+1 enlarged)])^2, at = softmax over positions of mean_c F^2. No heads.

    >>> student = gankd.distill(student, real=train, method="sad", steps=2)

    Loss: losses.self_distillation.self_attention_loss
    """

    Config = SADConfig
    needs_teacher = False

    def __init__(self, config: SADConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, _ = stage_taps(setup, config.name, config.student_taps, at_least=2)

    def forward(self, outputs: Outputs) -> Tensor:
        features = [outputs.student_features[path] for path in self.student_taps]
        return sum(
            self_attention_loss(student_feature=shallow, teacher_feature=deep) for shallow, deep in pairwise(features)
        )
