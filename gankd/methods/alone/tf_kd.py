"""Teacher-free distillation: from a teacher made by hand, or from an earlier training of the same network.

Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
arXiv 1909.11723.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from gankd.losses import regression_kd_loss, tf_kd_regularization_loss, tf_kd_self_loss
from gankd.methods.setup import Outputs
from gankd.methods.terms import BlendedConfig, Term
from generators.settings import Positive, Share


class TFKDRegConfig(BlendedConfig):
    """(1 - alpha) CE + alpha R. (alpha, temperature, multiplier) on CIFAR-100: ResNet-18 (.1, 20, 100), MobileNetV2
    (.95, 40, 1), ShuffleNetV2 (.95, 10, 1), GoogLeNet (.1, 40, 50)."""

    name: Literal["tf_kd_reg"] = "tf_kd_reg"
    """The method's name."""
    alpha: Share = 0.1
    """Weight of the regulariser against the labels."""
    temperature: Positive = 20.0
    """Temperature of the virtual teacher."""
    correct_probability: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """That the virtual teacher gives to the label."""
    multiplier: Positive = 100.0
    """Makes up for the regulariser's mean over classes: at K classes, K is the usual divergence."""


class TFKDReg(Term):
    """R = multiplier / (N K) sum_n KL(softmax(u_n / T) || softmax(s_n)), u the virtual teacher's probabilities.

    >>> student = gankd.distill(student, real=train, method="tf_kd_reg", steps=2)

    Loss: losses.smoothing.tf_kd_regularization_loss
    """

    Config = TFKDRegConfig
    tasks = frozenset({"classification"})
    needs_teacher = False
    hint = (
        "tf_kd_reg makes a teacher of class probabilities; this task has a scalar target. Use tf_kd_self, or a "
        "classification task."
    )

    def forward(self, outputs: Outputs) -> Tensor:
        return tf_kd_regularization_loss(
            student_logits=outputs.student,
            labels=outputs.batch.labels,
            temperature=self.config.temperature,
            correct_probability=self.config.correct_probability,
            multiplier=self.config.multiplier,
        )


class TFKDSelfConfig(BlendedConfig):
    """(1 - alpha) task loss + alpha * multiplier / K * T^2 KL. (alpha, temperature, multiplier) of the released settings for
    CIFAR-100: MobileNetV2 and ShuffleNetV2 (.95, 20, 1), ResNet-18 (.95, 6, 50), ResNeXt-29 (.9, 20, 100)."""

    name: Literal["tf_kd_self"] = "tf_kd_self"
    """The method's name."""
    alpha: Share = 0.95
    """Weight of the earlier self against the labels."""
    temperature: Positive = 20.0
    """Temperature that softens both distributions of classes."""
    multiplier: Positive = 1.0
    """Classes: makes up for the mean over classes, 1 to 100 in the paper; at K classes, K is `kd`."""


class TFKDSelf(Term):
    """The teacher is the student's own architecture, trained before (give its weights as the teacher).

    Scalars: mean (s - t)^2 in place of the divergence, which with the labels' loss is the square to the blended target.

    >>> student = gankd.distill(student, teacher, real=train, method="tf_kd_self", steps=2)

    Loss: losses.smoothing.tf_kd_self_loss
    """

    Config = TFKDSelfConfig
    heads = frozenset({"scalar", "bins"})
    hint = "Use kd."
    reads_teacher_outputs = True

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = outputs.student, outputs.teacher
        if student.ndim == 2 and student.shape[1] > 1:  # classes or bins
            return tf_kd_self_loss(
                student_logits=student,
                teacher_logits=teacher,
                temperature=self.config.temperature,
                multiplier=self.config.multiplier,
            )
        return regression_kd_loss(student_predictions=student.flatten(), teacher_predictions=teacher.flatten())
