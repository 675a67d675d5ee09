"""What a label means: its loss, its metric in the user's units, and what a teacher's answer says about it.

A network trained for regression answers in standardised units (zero mean, unit variance of the real training labels), a
generator is conditioned on labels in [0, 1], the user thinks in degrees or years: this file is where they are converted.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

CLASSIFICATION, REGRESSION = "classification", "regression"


def teacher_error(
    *,
    teacher_outputs: Tensor,
    labels: Tensor,
    task: str,
    label_min: float | None = None,
    label_max: float | None = None,
) -> Tensor:
    """How wrong a teacher finds each label, [N].

    Classification: cross-entropy of the teacher's logits [N, K] against labels [N]. Regression: |clip(t, 0, 1) - y| with
    the outputs t normalised to [0, 1], clipped, and taken back to the units of the labels. Source: cGAN-KD, module M2.
    """
    if task == CLASSIFICATION:
        return F.cross_entropy(teacher_outputs.float(), labels, reduction="none")
    return (_denormalized(teacher_outputs, label_min, label_max) - labels).abs()


def adjust_labels(
    *,
    teacher_outputs: Tensor,
    labels: Tensor,
    task: str,
    replace: bool,
    label_min: float | None = None,
    label_max: float | None = None,
) -> Tensor:
    """Labels [N] after label replacement: the teacher's class, or its clipped prediction in label units; unchanged when not
    `replace`. Outputs as in `teacher_error`. Source: cGAN-KD, module M2."""
    if not replace:
        return labels
    if task == CLASSIFICATION:
        return teacher_outputs.argmax(dim=1)
    return _denormalized(teacher_outputs, label_min, label_max).to(labels.dtype)


def _denormalized(teacher_outputs: Tensor, label_min: float, label_max: float) -> Tensor:
    labels = teacher_outputs.flatten().clamp(0, 1) * (label_max - label_min) + label_min
    return labels.clamp(label_min, label_max)  # rounding must not leave the range


@dataclasses.dataclass(frozen=True)
class Classification:
    """Labels are class ids 0..num_classes-1; networks answer with logits [N, num_classes]."""

    class_names: tuple[str, ...]
    kind: ClassVar[str] = CLASSIFICATION
    metric: ClassVar[str] = "top1"
    """The metric by which choices are made; higher is better."""
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "%"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    def check(self, labels: Tensor, name: str) -> None:
        """Raise a ValueError when a label is not one of the classes."""
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"{name}: label {labels[index].item()} of sample {index} is outside 0..{self.num_classes - 1}: "
                "number the classes from 0, as the training data has them."
            )

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, mean over the batch."""
        return F.cross_entropy(outputs.float(), labels)

    def predict(self, outputs: Tensor) -> Tensor:
        """Class ids [N]."""
        return outputs.argmax(dim=1)

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How wrong a network's outputs find the labels: cross-entropy [N], in nats."""
        return teacher_error(teacher_outputs=outputs, labels=labels, task=self.kind)

    def replace(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The labels that a network's outputs stand for, [N]."""
        return adjust_labels(teacher_outputs=outputs, labels=labels, task=self.kind, replace=True)

    def label_score(self, outputs: Tensor, labels: Tensor) -> float:
        """How well labels fit images, by a network's outputs: the share it agrees with, in %."""
        return 100 * (self.predict(outputs) == labels).float().mean().item()

    def metrics(self):
        """A fresh torchmetrics collection of top-1 and (from six classes on) top-5 accuracy, in [0, 1]."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        ks = [1] if self.num_classes < 6 else [1, 5]
        return MetricCollection(
            {f"top{k}": MulticlassAccuracy(self.num_classes, top_k=k, average="micro", validate_args=False) for k in ks}
        )

    def in_units(self, values: dict[str, float]) -> dict[str, float]:
        """What `metrics` computed, in the units a user reads: accuracies in %."""
        return {name: 100 * value for name, value in values.items()}

    def to_metric(self, outputs: Tensor) -> Tensor:
        """Outputs in the form that `metrics` takes."""
        return outputs


@dataclasses.dataclass(frozen=True)
class Regression:
    """Labels are scalars in the user's units; networks answer in standardised units, [N, 1] or [N].

    Args:
        label_min, label_max: the range of labels, by which generators are conditioned and predictions are clipped.
        mean, std: of the real training labels.
        unit: the word for the unit ("degrees").
    """

    label_min: float
    label_max: float
    mean: float = 0.0
    std: float = 1.0
    unit: str = ""
    kind: ClassVar[str] = REGRESSION
    metric: ClassVar[str] = "mae"
    """The metric by which choices are made; lower is better."""
    higher_is_better: ClassVar[bool] = False
    num_outputs: ClassVar[int] = 1

    def __post_init__(self):
        if not (self.label_min < self.label_max and self.std > 0):
            raise ValueError(
                f"labels span [{self.label_min:g}, {self.label_max:g}] with standard deviation {self.std:g}: "
                "a regression target must take at least two values."
            )

    def check(self, labels: Tensor, name: str) -> None:
        """Raise a ValueError when a label lies outside the range."""
        low, high = labels.new_tensor([self.label_min, self.label_max])  # in the labels' own precision
        outside = ~((labels >= low) & (labels <= high))
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"{name}: label {labels[index].item():g} of sample {index} is outside "
                f"[{self.label_min:g}, {self.label_max:g}]: widen task.label_min and task.label_max or set data.label_range."
            )

    def standardize(self, labels: Tensor) -> Tensor:
        """Labels in the user's units to what networks are trained on."""
        return (labels - self.mean) / self.std

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error in standardised units."""
        return F.mse_loss(outputs.float().flatten(), self.standardize(labels.float()))

    def translate(self, outputs: Tensor, theirs: Regression) -> Tensor:
        """Outputs of a network that was trained on another standardisation, in this one's."""
        return (outputs * theirs.std + (theirs.mean - self.mean)) / self.std

    def predict(self, outputs: Tensor) -> Tensor:
        """Predictions [N] in the user's units, clipped to the label range."""
        return _denormalized(self.normalize(outputs), self.label_min, self.label_max)

    def normalize(self, outputs: Tensor) -> Tensor:
        """Standardised outputs to [N] on the scale where the label range is [0, 1]; not clipped."""
        return (outputs.float().flatten() * self.std + self.mean - self.label_min) / (self.label_max - self.label_min)

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How wrong a network's outputs find the labels: absolute error [N] in the user's units."""
        return teacher_error(
            teacher_outputs=self.normalize(outputs),
            labels=labels,
            task=self.kind,
            label_min=self.label_min,
            label_max=self.label_max,
        )

    def replace(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The labels that a network's outputs stand for: clipped predictions [N] in the user's units."""
        return adjust_labels(
            teacher_outputs=self.normalize(outputs),
            labels=labels,
            task=self.kind,
            replace=True,
            label_min=self.label_min,
            label_max=self.label_max,
        )

    def label_score(self, outputs: Tensor, labels: Tensor) -> float:
        """How well labels fit images, by a network's outputs: mean absolute error in the user's units, lower is better."""
        return self.error(outputs, labels).mean().item()

    def metrics(self):
        """A fresh torchmetrics collection of MAE, RMSE (user's units) and R2."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

        return MetricCollection({"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": R2Score()})

    def in_units(self, values: dict[str, float]) -> dict[str, float]:
        """What `metrics` computed; already in the user's units."""
        return values

    def to_metric(self, outputs: Tensor) -> Tensor:
        """Outputs in the form that `metrics` takes."""
        return self.predict(outputs)


Task = Classification | Regression


def task_from(values: dict) -> Task:
    """A task from its fields and `kind`, as JSON holds them."""
    fields = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == CLASSIFICATION:
        return Classification(class_names=tuple(fields["class_names"]))
    return Regression(**fields)


def task_of(train, *, label_min: float | None = None, label_max: float | None = None, unit: str = "") -> Task:
    """The task that a training set poses: classification for class ids, regression for float labels.

    Mean and standard deviation are those of its labels; the label range too, where it is not given.
    """
    labels = train.labels
    if not labels.dtype.is_floating_point:
        names = train.class_names or tuple(str(index) for index in range(int(labels.max()) + 1))
        return Classification(class_names=names)
    low = labels.min().item() if label_min is None else label_min
    high = labels.max().item() if label_max is None else label_max
    return Regression(low, high, labels.double().mean().item(), labels.double().std(unbiased=False).item(), unit)
