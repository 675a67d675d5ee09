"""Scalar targets: what a teacher's prediction is good for where it is worse than the label, or the label is wrong.

teacher_bounded: Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
    Distillation", NeurIPS 2017
outlier_rejection: after Takamoto, Morishita, Imaoka, "An Efficient Method of Training Small Models for Regression Problems
    with Knowledge Distillation", MIPR 2020, arXiv 2002.12597

s, t, y: the student's and the teacher's predictions and the labels, all standardised. A teacher that knows its training
images by heart has no errors there: these methods say most on held-out or synthetic samples.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from gankd.distributed.processes import gather, gather_with_gradient
from gankd.losses import bounded_error, kept_label_error, regression_kd_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term, TermConfig
from gankd.models.taps import default_taps, feature_shapes
from gankd.tasks import REGRESSION
from generators.images import to_unit_range
from generators.settings import Positive, Weight


@torch.no_grad()
def teacher_distances(setup: Setup) -> Tensor:
    """|t - y| of every training sample, [num_samples], from one pass over the images without augmentation."""
    distances = []
    for batch in setup.data.in_order():
        predictions = setup.task.prediction(setup.teacher(to_unit_range(batch.images)))
        distances.append((predictions - setup.task.standardize(batch.labels.float())).abs())
    return torch.cat(distances)


class ScalarTerm(Term):
    """A term on scalar predictions and labels."""

    tasks = frozenset({REGRESSION})
    heads = frozenset({"scalar"})
    hint = "Use method kd."
    reads_teacher_outputs = True

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """s, t and y of all processes, [N] each, as the losses name them."""
        return {
            "student_predictions": gather_with_gradient(self.task.prediction(outputs.student)),
            "teacher_predictions": gather(self.task.prediction(outputs.teacher)),
            "labels": gather(self.task.standardize(outputs.labels.float())),
        }


class TeacherBoundedConfig(TermConfig):
    """task_weight * l(s - y) + weight * b."""

    name: Literal["teacher_bounded"] = "teacher_bounded"
    """The method's name."""
    weight: Weight = 0.5
    """Weight of the squared error where the student has not yet passed the teacher."""
    margin: float = 0.0
    """By how much, in squared standard deviations of the labels, the student has to beat the teacher."""
    loss: Literal["l2", "l1", "huber"] = "huber"
    """Loss on the labels."""
    delta: Positive = 1.0
    """Where `huber` turns linear, in standard deviations of the labels."""


class TeacherBounded(ScalarTerm):
    """b = mean of (s - y)^2 over the samples with (s - y)^2 + margin > (t - y)^2, 0 for the others: the teacher is a bar.

    The labels have their own loss l in place of the task's.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "teacher_bounded", "margin": 0.1})

    Loss: losses.regression.teacher_bounded_regression_loss
    """

    Config = TeacherBoundedConfig
    own_label_loss = True

    def forward(self, outputs: Outputs) -> Tensor:
        return bounded_error(**self.predictions(outputs), margin=self.config.margin)

    def label_loss(self, outputs: Outputs) -> Tensor:
        return regression_kd_loss(
            student_predictions=self.task.prediction(outputs.student),
            teacher_predictions=self.task.standardize(outputs.labels.float()),
            loss=self.config.loss,
            delta=self.config.delta,
        )


class OutlierRejectionConfig(TermConfig):
    """task_weight * (s - y)^2 of the labels that are kept + weight * (s' - t)^2."""

    name: Literal["outlier_rejection"] = "outlier_rejection"
    """The method's name."""
    weight: Weight = 1.0
    """Weight of the imitation."""
    two_heads: bool = True
    """A second linear head s' imitates the teacher, and only the first is deployed; false: the student itself does."""
    student_tap: str | None = None
    """Module path of the feature that the second head reads. Null: the pooled one (the last linear layer's input)."""


class OutlierRejection(ScalarTerm):
    """Labels with |t - y| > threshold are taken for wrong and left out; the teacher is imitated everywhere.

    threshold = 3 * 1.4826 * median |t - y| over the training set, measured before the first step: three standard deviations
    of errors that are normal but for the wrong ones. The labels that are kept have their mean in place of the task's loss.

    >>> student = gankd.distill(student, teacher, real=train, method="outlier_rejection")

    Loss: losses.regression.teacher_outlier_rejection_loss
    """

    Config = OutlierRejectionConfig
    own_label_loss = True

    def __init__(self, config: OutlierRejectionConfig, setup: Setup):
        super().__init__(config, setup)
        self.register_buffer("threshold", torch.tensor(torch.inf))  # not measured yet: every label is kept
        if config.two_heads:
            image_shape = setup.data.image_shape
            self.student_taps = [config.student_tap or default_taps(setup.student, image_shape=image_shape)[-1]]
            (shape,) = feature_shapes(setup.student, image_shape, self.student_taps)
            self.head = nn.Linear(shape[0], 1)

    def prepare(self, setup: Setup) -> None:
        distances = teacher_distances(setup).sort().values
        median = (distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2
        self.threshold.copy_(3 * 1.4826 * median)

    def forward(self, outputs: Outputs) -> Tensor:
        imitation = self.task.prediction(outputs.student)
        if self.config.two_heads:
            feature = outputs.student_features[self.student_taps[0]]
            imitation = self.head(feature.flatten(2).mean(2) if feature.ndim == 4 else feature).flatten()  # [N]
        teacher = self.task.prediction(outputs.teacher)
        return regression_kd_loss(student_predictions=imitation, teacher_predictions=teacher)

    def label_loss(self, outputs: Outputs) -> Tensor:
        return kept_label_error(**self.predictions(outputs), threshold=self.threshold)
