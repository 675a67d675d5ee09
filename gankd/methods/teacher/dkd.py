"""Decoupled distillation: how sure of the label, and which of the other classes, follow the teacher separately.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import dkd_loss
from gankd.methods.setup import Outputs
from gankd.methods.temperature import TemperatureSetting, TemperatureTerm
from gankd.methods.terms import TermConfig
from gankd.tasks import CLASSIFICATION
from generators.settings import Share, Weight


class DKDConfig(TermConfig):
    """task loss + weight (alpha TCKD + beta NCKD), the weight rising in the warm-up."""

    name: Literal["dkd"] = "dkd"
    """The method."""
    alpha: Weight = 1.0
    """Weight of the label against all other classes together."""
    beta: Weight = 8.0
    """Weight of the other classes among each other. CIFAR-100: 8; 2 for thin residual networks (resnet56 to resnet20), 6 for
    vgg13 and wrn_40_2 as the teacher of their kind. ImageNet: 0.5."""
    temperature: TemperatureSetting = 4.0
    """What the logits of both are divided by (ImageNet: 1). A number, or one that is learned: {learn: global}."""
    warmup: Share = 20 / 240
    """Share of the run in which the term's weight rises linearly (ImageNet: 1 / 100)."""


class DKD(TemperatureTerm):
    """alpha T^2 KL(b_t || b_s) + beta T^2 KL(q_t || q_s): b is (label, rest), q the distribution over the rest.

    The labels are those of the batch: of a synthetic image, the class that it was drawn for or given.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "dkd", "beta": 2})

    Loss: losses.logits.dkd_loss
    """

    Config = DKDConfig
    tasks = frozenset({CLASSIFICATION})
    hint = "It needs a target class; use method kd, or dist on task.head: bins."

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = outputs.student, outputs.teacher
        return dkd_loss(
            student_logits=student,
            teacher_logits=teacher,
            labels=outputs.batch.labels,
            alpha=self.config.alpha,
            beta=self.config.beta,
            temperature=self.temperature(student, teacher),
        )
