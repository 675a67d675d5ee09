"""Knowledge distillation by outputs: soft classes, or a regressor's prediction as a soft target.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; with a learned temperature (`ctkd`)
Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, arXiv 2211.16231.
"""

from typing import Literal

from torch import Tensor

from gankd.losses import gaussian_kd_loss, kd_loss, regression_kd_loss
from gankd.methods.setup import Outputs
from gankd.methods.temperature import LearnedTemperature, TemperatureSetting, TemperatureTerm
from gankd.methods.terms import BlendedConfig
from gankd.tasks import CLASSIFICATION, REGRESSION
from generators.settings import Positive, Share

NEEDS_BINS = "ctkd learns a softmax temperature; set task.head: bins."


class KDConfig(BlendedConfig):
    """(1 - alpha) task loss + alpha distillation loss."""

    name: Literal["kd"] = "kd"
    """The method."""
    alpha: Share = 0.9
    """Weight of the teacher against the labels."""
    temperature: TemperatureSetting = 4.0
    """What the logits of both are divided by, for classes and bins. A number, or one that is learned: {learn: global}."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Distance of a scalar to the teacher's prediction, in standardised units. l2 beside the labels' squared error is no
    more than a blend of both targets; the others add something."""
    delta: Positive = 1.0
    """Where `huber` turns linear, in standard deviations of the labels."""

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        if isinstance(self.temperature, LearnedTemperature) and task_kind == REGRESSION and head != "bins":
            raise ValueError(NEEDS_BINS)


class KD(TemperatureTerm):
    """Classes: (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)).

    Regression: the task's loss for CE, and for the divergence, by the kind of output: of a scalar l(s - t), of bins the
    same as for classes, of a Gaussian KL(N_t || N_s). To bins a scalar teacher says what a label would.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "kd", "temperature": 2})

    Loss: losses.logits.kd_loss, losses.regression.regression_kd_loss, losses.distributions.gaussian_kd_loss
    """

    Config = KDConfig

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = outputs.student, outputs.teacher
        if self.task.kind == CLASSIFICATION or self.task.head == "bins":
            temperature = self.temperature(student, teacher)
            return kd_loss(student_logits=student, teacher_logits=teacher, temperature=temperature)
        if self.task.head == "gaussian":
            return gaussian_kd_loss(
                student_mean=student[:, 0],
                student_log_variance=student[:, 1],
                teacher_mean=teacher[:, 0],
                teacher_log_variance=teacher[:, 1],
            )
        return regression_kd_loss(
            student_predictions=student.flatten(),
            teacher_predictions=teacher.flatten(),
            loss=self.config.loss,
            delta=self.config.delta,
        )


class CTKDConfig(KDConfig):
    """(1 - alpha) task loss + alpha distillation loss at a temperature that is learned."""

    name: Literal["ctkd"] = "ctkd"
    """The method."""
    temperature: LearnedTemperature = LearnedTemperature()
    """How the temperature is learned. `kd` and `dkd` take the same settings as their temperature."""


class CTKD(KD):
    """min over the student, max over theta: (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)), T(theta).

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "ctkd", "alpha": 0.5})

    Loss: losses.logits.kd_loss at losses.curriculum.ctkd_temperature
    """

    Config = CTKDConfig
    heads = frozenset({"bins"})
    hint = NEEDS_BINS
