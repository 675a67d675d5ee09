"""What a label means: its loss, its metric in the user's units, and what a teacher's answer says about it.

A network trained for regression answers in standardised units (zero mean, unit variance of the real training labels), a
generator is conditioned on labels in [0, 1], the user thinks in degrees or years: this file is where they are converted.
It answers with a number, with logits over bins, or with a mean and a log variance: its head, which is converted here too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gankd.losses.classes import ClassEquations, softened_divergence
from gankd.losses.distributions import (
    NUM_BINS,
    distribution_expectation,
    gaussian_kd_loss,
    gaussian_nll_loss,
    label_distribution_loss,
    uniform_bins,
)
from gankd.losses.mixing import mixup_batch
from gankd.losses.precision import full_precision
from gankd.losses.teacher_labels import adjust_labels, check_answers, denormalized, teacher_error

CLASSIFICATION, REGRESSION, REPRESENTATION = "classification", "regression", "representation"
SCALAR, BINS, GAUSSIAN = HEADS = ("scalar", "bins", "gaussian")
VARIANCE_WARMUP = 0.05  # share of a run: variance grows first on hard samples, which then hardly move the mean
SMALLEST_LOG_VARIANCE = -10.0  # where the losses of a Gaussian head clamp it


@dataclasses.dataclass(frozen=True)
class Classification(ClassEquations):
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

    def __post_init__(self):
        if len(self.class_names) < 2:
            raise ValueError(
                "a classification tells two classes or more apart, and this one has "
                f"{', '.join(self.class_names) or 'none'}: "
                "give images of other classes too, or labels that are numbers with a decimal point for a regression."
            )

    def check(self, labels: Tensor, name: str) -> None:
        """Raise a ValueError when a label is not one of the classes."""
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"{name}: label {labels[index].item()} of sample {index} is outside 0..{self.num_classes - 1}: "
                "number the classes from 0, as the training data has them."
            )

    def plain(self) -> Classification:
        """The task for whoever only asks what networks predict: the same."""
        return self

    def at(self, progress: float) -> Classification:
        """The task as it is trained after a share `progress` of the run: always the same."""
        return self

    def predict(self, outputs: Tensor) -> Tensor:
        """Class ids [N]."""
        return outputs.argmax(dim=1)

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
        """Outputs in the form that `metrics` takes. Raises ValueError for outputs that are not a number."""
        check_answers(outputs, ~outputs.isnan())
        return outputs


@dataclasses.dataclass(frozen=True)
class Regression:
    """Labels are scalars in the user's units; networks answer in standardised units, in the form of their head.

    Heads: `scalar`, a number [N, 1] or [N]; `bins`, logits [N, B] over bins, whose expectation is the prediction (Gao et
    al., DLDL, TIP 2017, arXiv 1611.01731; DLDL-v2, IJCAI 2018); `gaussian`, mean and log variance [N, 2] (Kendall and Gal,
    NeurIPS 2017, arXiv 1703.04977).

    label_min, label_max: the range of labels, by which generators are conditioned and predictions are clipped.
    mean, std: of the real training labels.
    unit: the word for the unit ("degrees").
    bins: of head `bins`: the bins' centres, ascending, standardised; (): see `uniform_bins`.
    sigma: of head `bins`: the width of a label's distribution, standardised; None: see `uniform_bins`. Of a `scalar`
        network: its RMS error, standardised, where it is known: so wide it teaches another head (see `translate`).
    Raises ValueError: a range without extent, an unknown head, bins or a sigma that cannot be.
    """

    label_min: float
    label_max: float
    mean: float = 0.0
    std: float = 1.0
    unit: str = ""
    head: str = SCALAR
    bins: tuple[float, ...] = ()
    sigma: float | None = None
    kind: ClassVar[str] = REGRESSION
    metric: ClassVar[str] = "mae"
    """The metric by which choices are made; lower is better."""
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self):
        numbers = {name: getattr(self, name) for name in ("label_min", "label_max", "mean", "std")}
        if unusable := [f"{name} {value:g}" for name, value in numbers.items() if not math.isfinite(value)]:
            raise ValueError(
                f"{' and '.join(unusable)}: a label range has finite ends; give numbers within the labels'."
            )
        if self.label_min > self.label_max:
            raise ValueError(
                f"label_min {self.label_min:g} is above label_max {self.label_max:g}: exchange the ends of the label range."
            )
        if not (self.label_min < self.label_max and self.std > 0):
            raise ValueError(
                f"labels span [{self.label_min:g}, {self.label_max:g}] with standard deviation {self.std:g}: "
                "a regression target must take at least two values."
            )
        if self.head not in HEADS:
            raise ValueError(f"unknown task.head '{self.head}': use {', '.join(HEADS)}.")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"the width sigma (task.sigma) must be positive, got {self.sigma:g}.")
        if self.head == BINS and not self.bins:
            low, high = ((end - self.mean) / self.std for end in (self.label_min, self.label_max))
            bins, sigma = uniform_bins(low, high, sigma=self.sigma)
            object.__setattr__(self, "bins", bins)
            object.__setattr__(self, "sigma", sigma)
        if self.head == BINS and not (
            len(self.bins) > 1 and all(low < high for low, high in zip(self.bins, self.bins[1:], strict=False))
        ):
            raise ValueError("the bins must be two or more centres that ascend.")
        if self.head == BINS and self.sigma is None:
            span = (self.label_max - self.label_min) / self.std
            object.__setattr__(self, "sigma", max(self.spacing, 0.02 * span))

    @property
    def num_outputs(self) -> int:
        return {SCALAR: 1, BINS: len(self.bins), GAUSSIAN: 2}[self.head]

    @property
    def spacing(self) -> float:
        """Of head `bins`: the mean distance of neighbouring centres, standardised."""
        return (self.bins[-1] - self.bins[0]) / (len(self.bins) - 1)

    def centres(self, device: torch.device | str) -> Tensor:
        """Of head `bins`: the bins' centres, float32 [B], standardised."""
        return torch.tensor(self.bins).to(device, non_blocking=True)  # a blocking copy would wait for the device

    def check(self, labels: Tensor, name: str) -> None:
        """Raise a ValueError when a label lies outside the range, or more than 1 % of them outside the bins."""
        low, high = labels.new_tensor([self.label_min, self.label_max])  # in the labels' own precision
        outside = ~((labels >= low) & (labels <= high))
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"{name}: label {labels[index].item():g} of sample {index} is outside "
                f"[{self.label_min:g}, {self.label_max:g}]: widen task.label_min and task.label_max or set data.label_range."
            )
        if self.head == BINS:
            standardized = self.standardize(labels)
            share = ((standardized < self.bins[0]) | (standardized > self.bins[-1])).double().mean().item()
            if share > 0.01:  # the loss would count them for the end bins
                low, high = (bin * self.std + self.mean for bin in (self.bins[0], self.bins[-1]))
                raise ValueError(
                    f"{name}: {100 * share:.1f} % of the labels lie outside the bins [{low:g}, {high:g}]: give bins that "
                    "reach from task.label_min to task.label_max."
                )

    def standardize(self, labels: Tensor) -> Tensor:
        """Labels in the user's units to what networks are trained on."""
        return (labels - self.mean) / self.std

    def plain(self) -> Regression:
        """The task for whoever only asks what networks predict: with a number as their answer."""
        return dataclasses.replace(self, head=SCALAR, bins=(), sigma=None)

    def at(self, progress: float) -> Regression:
        """The task as it is trained after a share `progress` of the run: a Gaussian head begins with unit variance."""
        if self.head != GAUSSIAN or progress >= VARIANCE_WARMUP:
            return self
        return UnitVariance(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """In standardised units, mean over the batch: squared error, divergence from the labels' distributions plus absolute
        error of the expectation, or negative log-likelihood."""
        labels = self.standardize(labels.float())
        if self.head == BINS:
            assert self.sigma is not None, "bins without a width of labels"
            bins = self.centres(outputs.device)
            return label_distribution_loss(student_logits=outputs, labels=labels, bins=bins, sigma=self.sigma)[0]
        if self.head == GAUSSIAN:
            mean, log_variance = outputs.unbind(dim=1)
            return gaussian_nll_loss(student_mean=mean, student_log_variance=log_variance, labels=labels)
        return F.mse_loss(outputs.float().flatten(), labels)

    def mixed_loss(self, outputs: Tensor, labels: Tensor, permutation: Tensor, mixing: float) -> Tensor:
        """The loss on images mixed with their partners, to the same blend of their labels."""
        return self.loss(outputs, mixup_batch(images=labels, permutation=permutation, mixing=mixing))

    def divergence(self, outputs: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
        """How far outputs are from others of the same form, mean over the batch.

        Squared difference of scalars, in standardised units; of bins as of classes; of Gaussians KL(targets || outputs). The
        gradient reaches both, but for the targets of Gaussians.
        """
        if self.head == BINS:
            return softened_divergence(full_precision(outputs), full_precision(targets), temperature).mean()
        if self.head == GAUSSIAN:
            return gaussian_kd_loss(
                student_mean=outputs[:, 0],
                student_log_variance=outputs[:, 1],
                teacher_mean=targets[:, 0],
                teacher_log_variance=targets[:, 1],
            )
        return F.mse_loss(full_precision(outputs).flatten(), full_precision(targets).flatten())

    def soften(self, labels: Tensor, num_outputs: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Labels as a network would answer with them: [N], standardised."""
        return self.standardize(labels.float())

    def soft_labels(self, outputs: Tensor, *, temperature: float = 1.0) -> Tensor:
        """What outputs say, as something that can be averaged: predictions [N], standardised."""
        return self.prediction(outputs)

    def soft_divergence(self, outputs: Tensor, soft_labels: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Squared error to averages [N] of labels and predictions, standardised, mean over the batch."""
        return F.mse_loss(full_precision(outputs).flatten(), soft_labels)

    soft_loss = soft_divergence

    def prediction(self, outputs: Tensor) -> Tensor:
        """The number that outputs stand for, [N], standardised and not clipped: itself, the expectation, or the mean."""
        if self.head == BINS:
            return distribution_expectation(student_logits=full_precision(outputs), bins=self.centres(outputs.device))
        return full_precision(outputs[:, 0]) if self.head == GAUSSIAN else full_precision(outputs).flatten()

    def translate(self, outputs: Tensor, theirs: Regression) -> Tensor:
        """Outputs of a network of another standardisation or head, in this one's; a single number is always a scalar.

        A number speaks to bins or to a Gaussian head as a label would (width sigma, no variance), or as widely as
        `theirs.sigma`. What bins and Gaussian heads say to each other are a mean and a variance.
        """

        if theirs.head != SCALAR and (outputs.ndim == 1 or outputs.shape[1] == 1):
            theirs = theirs.plain()
        if theirs == self:
            return outputs

        def restandardize(values: Tensor) -> Tensor:
            return (values * theirs.std + (theirs.mean - self.mean)) / self.std

        if self.head == SCALAR:
            return restandardize(outputs if theirs.head == SCALAR else theirs.prediction(outputs)[:, None])
        if self.head == theirs.head == BINS and self._has_the_bins_of(theirs):
            return outputs
        mean, log_variance = restandardize(theirs.prediction(outputs)), theirs._log_variance(outputs)
        if log_variance is not None:
            log_variance = log_variance + 2 * math.log(theirs.std / self.std)
        if self.head == GAUSSIAN:
            known = torch.full_like(mean, SMALLEST_LOG_VARIANCE) if log_variance is None else log_variance
            return torch.stack([mean, known], dim=1)
        assert self.sigma is not None, "bins without a width of labels"
        # Narrower than the bins' spacing, all would fall into one bin and the mean be lost.
        variance = self.sigma**2 if log_variance is None else log_variance.exp().clamp(min=self.spacing**2)[:, None]
        return -(mean[:, None] - self.centres(outputs.device)).square() / (2 * variance)

    def _has_the_bins_of(self, theirs: Regression) -> bool:
        """Whether the same bins are meant, to a thousandth of their spacing."""
        translated = [(bin * theirs.std + theirs.mean - self.mean) / self.std for bin in theirs.bins]
        return len(translated) == len(self.bins) and all(
            abs(one - other) < 1e-3 * self.spacing for one, other in zip(translated, self.bins, strict=True)
        )

    def _log_variance(self, outputs: Tensor) -> Tensor | None:
        """How unsure outputs are, [N], standardised; None for a scalar whose error is not known."""
        if self.head == GAUSSIAN:
            return outputs[:, 1].float()
        if self.head == BINS:
            distances = self.centres(outputs.device) - self.prediction(outputs)[:, None]  # [N, B]
            variance = (F.softmax(outputs.float(), dim=1) * distances.square()).sum(dim=1)
            return variance.clamp(min=math.exp(SMALLEST_LOG_VARIANCE)).log()
        if self.sigma is not None:
            return outputs.new_full((len(outputs),), 2 * math.log(self.sigma), dtype=torch.float32)
        return None

    def predict(self, outputs: Tensor) -> Tensor:
        """Predictions [N] in the user's units, clipped to the label range."""
        return denormalized(self.normalize(outputs), self.label_min, self.label_max)

    def normalize(self, outputs: Tensor) -> Tensor:
        """Outputs to predictions [N] on the scale where the label range is [0, 1]; not clipped."""
        return (self.prediction(outputs) * self.std + (self.mean - self.label_min)) / (self.label_max - self.label_min)

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How wrong a network's outputs find the labels: absolute error [N] in the user's units."""
        ends = {"label_min": self.label_min, "label_max": self.label_max}
        return teacher_error(teacher_outputs=self.normalize(outputs), labels=labels, task=self.kind, **ends)

    def replace(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The labels that a network's outputs stand for: clipped predictions [N] in the user's units."""
        ends = {"label_min": self.label_min, "label_max": self.label_max}
        answers = self.normalize(outputs)
        return adjust_labels(teacher_outputs=answers, labels=labels, task=self.kind, replace=True, **ends)

    def label_score(self, outputs: Tensor, labels: Tensor) -> float:
        """How well labels fit images, by a network's outputs: mean absolute error in the user's units, lower is better."""
        return self.error(outputs, labels).mean().item()

    def metrics(self):
        """A fresh torchmetrics metric of MAE, RMSE (user's units) and R2."""
        from gankd.label_scores import LabelScores

        return LabelScores()

    def in_units(self, values: dict[str, float]) -> dict[str, float]:
        """What `metrics` computed; already in the user's units."""
        return values

    def to_metric(self, outputs: Tensor) -> Tensor:
        """Predictions in double precision, where the device has it. Raises ValueError for outputs that are not finite."""
        check_answers(outputs, outputs.isfinite())
        return self.predict(outputs if outputs.device.type == "mps" else outputs.double())


class UnitVariance(Regression):
    """A Gaussian head while it learns its mean alone, with the log variance held at 0."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Half the squared error in standardised units, mean over the batch."""
        return super().loss(torch.stack([outputs[:, 0], torch.zeros_like(outputs[:, 0])], dim=1), labels)


@dataclasses.dataclass(frozen=True)
class Representation:
    """Nothing is asked of a network's outputs: its backbone is trained without labels.

    labels: what the labels of the images mean, where they have any and a probe is to watch the training by them.
    """

    labels: Classification | Regression | None = None
    kind: ClassVar[str] = REPRESENTATION

    def check(self, labels: Tensor, name: str) -> None:
        """Raise a ValueError when a label that the probe reads is not one of the task's."""
        if self.labels is not None:
            self.labels.check(labels, name)

    def at(self, progress: float) -> Representation:
        """The task after a share `progress` of the run: always the same."""
        return self


Task = Classification | Regression | Representation


def task_from(values: dict) -> Task:
    """A task from its fields and `kind`, as JSON holds them."""
    fields = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == CLASSIFICATION:
        return Classification(class_names=tuple(fields["class_names"]))
    return Regression(**{**fields, "bins": tuple(fields.get("bins", ()))})


def task_of(
    train,
    *,
    label_min: float | None = None,
    label_max: float | None = None,
    unit: str = "",
    head: str = SCALAR,
    num_bins: int | None = None,
    sigma: float | None = None,
) -> Task:
    """The task that a training set poses: classification for class ids, regression for float labels.

    Mean and standard deviation are those of its labels; the label range too, where it is not given.

    head: of a regression: see `Regression`.
    num_bins: None: 64, or the number of distinct labels if fewer than 100, but 16 at least.
    sigma: width of a label's distribution over the bins, in the labels' units; None: see `uniform_bins`.
    """
    labels = train.labels
    if not labels.dtype.is_floating_point:
        names = train.class_names or tuple(str(index) for index in range(int(labels.max()) + 1))
        return Classification(class_names=names)
    low = labels.min().item() if label_min is None else label_min
    high = labels.max().item() if label_max is None else label_max
    task = Regression(low, high, labels.double().mean().item(), labels.double().std(unbiased=False).item(), unit)
    if head != BINS:
        return dataclasses.replace(task, head=head)
    if num_bins is None:
        distinct = len(labels.unique())
        num_bins = max(16, distinct) if distinct < 100 else NUM_BINS
    low, high = ((end - task.mean) / task.std for end in (low, high))
    bins, sigma = uniform_bins(low, high, num_bins, None if sigma is None else sigma / task.std)
    return dataclasses.replace(task, head=head, bins=bins, sigma=sigma)


def not_finite(outputs: Tensor, task: Task) -> Tensor:
    """Of which outputs no prediction can be made, bool like them; a class may have the logit -inf."""
    return ~outputs.isfinite() if task.kind == REGRESSION else outputs.isnan() | (outputs == torch.inf)
