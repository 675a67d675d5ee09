"""Losses on scalar (or vector) predictions that learn from a teacher.

regression_kd_loss: the direct analogue of logit distillation for a regressor, the starting point of Saputra et al.
teacher_bounded_regression_loss, bounded_error: Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection
    Models with Knowledge Distillation", NeurIPS 2017
teacher_confidence, attentive_imitation_loss, attentive_hint_loss: Saputra, de Gusmao, Almalioglu, Markham, Trigoni,
    "Distilling Knowledge From a Deep Pose Regressor Network", ICCV 2019, arXiv 1908.00858
teacher_outlier_rejection_loss, kept_label_error: after Takamoto, Morishita, Imaoka, "An Efficient Method of Training
    Small Models for Regression Problems with Knowledge Distillation", MIPR 2020, arXiv 2002.12597

s, t, y: the student's and the teacher's predictions and the labels, all in the units the network is trained in.
"""

import torch
from torch import Tensor

from .checks import check_same_shape, shapes
from .precision import full_precision
from .residuals import mean_loss, residuals, squared_norms


def regression_kd_loss(
    *,
    student_predictions: Tensor,  # [N] or [N, D], in the units the network is trained in
    teacher_predictions: Tensor,  # the same shape, detached
    loss: str = "l2",  # "l2", "l1" or "huber"
    delta: float = 1.0,  # where the Huber loss turns linear, in the predictions' units
) -> Tensor:
    """The student's prediction follows the teacher's.

    L = mean_n sum_d l(s_nd - t_nd), with
      l2     l(r) = r^2
      l1     l(r) = |r|
      huber  l(r) = r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2)

    (1 - a) l2(s - y) + a l2(s - t) equals, up to a constant, the squared error to the blended label (1 - a) y + a t;
    l1 and huber do add something to that. Returns a scalar.
    Raises ValueError when the shapes differ, the loss is unknown or delta is not positive.
    """
    names = "student and teacher predictions"
    return mean_loss(residuals(student_predictions, teacher_predictions, names), loss, delta)


def teacher_bounded_regression_loss(
    *,
    student_predictions: Tensor,  # [N] or [N, D]
    teacher_predictions: Tensor,  # the same shape, detached
    labels: Tensor,  # the same shape
    margin: float = 0.0,  # by how much, in squared units, the student has to beat the teacher
    weight: float = 0.5,
    loss: str = "huber",  # of the label term: "l2", "l1" or "huber"
    delta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher is a bar to pass, never a target.

    L = mean_n l(s_n - y_n) + weight * mean_n b_n
    b_n = |s_n - y_n|^2 if |s_n - y_n|^2 + margin > |t_n - y_n|^2, else 0

    A student as good as its teacher is silent at margin 0. Where b is on, its gradient is 2 (s - y): towards the label.
    Returns (L, the label term, mean b before its weight).
    Raises ValueError when the shapes differ, the loss is unknown or delta is not positive.
    """
    label_term = mean_loss(residuals(student_predictions, labels, "student predictions and labels"), loss, delta)
    bounded_term = bounded_error(
        student_predictions=student_predictions, teacher_predictions=teacher_predictions, labels=labels, margin=margin
    )
    return label_term + weight * bounded_term, label_term, bounded_term


def bounded_error(
    *, student_predictions: Tensor, teacher_predictions: Tensor, labels: Tensor, margin: float = 0.0
) -> Tensor:
    """mean_n b_n of `teacher_bounded_regression_loss`, a scalar; arguments as there."""
    student_errors = squared_norms(residuals(student_predictions, labels, "student predictions and labels"))  # [N]
    teacher_errors = _teacher_errors(teacher_predictions, labels)  # [N]
    return torch.where(student_errors + margin > teacher_errors, student_errors, 0).mean()


def teacher_confidence(
    *,
    teacher_predictions: Tensor,  # [N] or [N, D], detached
    labels: Tensor,  # the same shape
    error_range: float | Tensor | None = None,  # max e - min e over the training set; None: over this batch
) -> Tensor:
    """How far each answer of the teacher can be trusted.

    c_n = clamp(1 - e_n / error_range, 0, 1),  e_n = |t_n - y_n|^2

    Unclamped, the worst sample would get a negative confidence whenever min e > 0. The batch's own range makes a
    sample's confidence depend on its neighbours: one pass over the training set gives the paper's. A range of 0 leaves
    1 to the samples without any error and 0 to the others, the limit of the equation.
    Returns [N] in [0, 1]. Raises ValueError when the shapes differ or error_range is negative.
    """
    errors = _teacher_errors(teacher_predictions, labels)
    if error_range is None:
        spread = errors.max() - errors.min()
    elif isinstance(error_range, Tensor) or error_range >= 0:  # a tensor's value would be waited for
        spread = torch.as_tensor(error_range, dtype=errors.dtype, device=errors.device)
    else:
        raise ValueError(f"the range of the teacher's squared errors cannot be negative, got {error_range}")
    return (1 - errors / spread.clamp(min=torch.finfo(errors.dtype).tiny)).clamp(0, 1)


def attentive_imitation_loss(
    *,
    student_predictions: Tensor,  # [N] or [N, D]
    teacher_predictions: Tensor,  # the same shape, detached
    labels: Tensor,  # the same shape
    error_range: float | Tensor | None = None,  # as in teacher_confidence
    alpha: float = 0.5,  # the labels' share
) -> tuple[Tensor, Tensor, Tensor]:
    """The student imitates the teacher as far as the teacher can be trusted.

    L = alpha * mean_n |s_n - y_n|^2 + (1 - alpha) * mean_n c_n |s_n - t_n|^2,  c = teacher_confidence

    Returns (L, the label term, the imitation term), the terms before their shares.
    Raises ValueError when the shapes differ or error_range is negative.
    """
    confidences = teacher_confidence(teacher_predictions=teacher_predictions, labels=labels, error_range=error_range)
    to_labels = residuals(student_predictions, labels, "student predictions and labels")
    to_teacher = residuals(student_predictions, teacher_predictions, "student and teacher predictions")
    label_term = squared_norms(to_labels).mean()
    imitation_term = (confidences * squared_norms(to_teacher)).mean()
    return alpha * label_term + (1 - alpha) * imitation_term, label_term, imitation_term


def attentive_hint_loss(
    *,
    student_feature: Tensor,  # [N, ...]
    teacher_feature: Tensor,  # the same shape, detached
    confidences: Tensor,  # [N], from teacher_confidence, detached
) -> Tensor:
    """The student's feature follows the teacher's where the teacher's prediction can be trusted.

    L = mean_n c_n * mean over the entries of (f_s,n - f_t,n)^2
    """
    differences = residuals(student_feature, teacher_feature, "student and teacher features")
    if confidences.shape != student_feature.shape[:1]:  # [N, 1] would broadcast to [N, N]
        found = shapes(confidences, student_feature)
        raise ValueError(f"attentive hints need one confidence per sample, not confidences and features {found}")
    distances = differences.square().reshape(len(differences), -1).mean(1)  # [N]
    return (full_precision(confidences.detach()) * distances).mean()


def teacher_outlier_rejection_loss(
    *,
    student_predictions: Tensor,  # [N] or [N, D], of the head that is deployed
    teacher_predictions: Tensor,  # the same shape, detached
    labels: Tensor,  # the same shape
    threshold: float | Tensor,  # in label units; 3 * 1.4826 * median |t - y| over the training set is a robust 3 sigma
    student_teacher_predictions: Tensor | None = None,  # the same shape, of a second head; None: there is one head
    imitation_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A label the teacher disagrees with is taken for wrong; the teacher is imitated everywhere.

    keep_n = 1 if |t_n - y_n| <= threshold else 0
    L = sum_n keep_n |s_n - y_n|^2 / max(1, sum_n keep_n) + imitation_weight * mean_n |s'_n - t_n|^2

    s' is the head that imitates the teacher. With every label rejected the label term is 0 and keeps its graph.
    Returns (L, the label term, the imitation term before its weight).
    Raises ValueError when the shapes differ or the threshold is negative.
    """
    label_term = kept_label_error(
        student_predictions=student_predictions,
        teacher_predictions=teacher_predictions,
        labels=labels,
        threshold=threshold,
    )
    imitation = student_predictions if student_teacher_predictions is None else student_teacher_predictions
    check_same_shape(imitation, labels, "predictions that imitate the teacher and labels")
    imitation_term = squared_norms(residuals(imitation, teacher_predictions, "student and teacher predictions")).mean()
    return label_term + imitation_weight * imitation_term, label_term, imitation_term


def kept_label_error(
    *, student_predictions: Tensor, teacher_predictions: Tensor, labels: Tensor, threshold: float | Tensor
) -> Tensor:
    """The label term of `teacher_outlier_rejection_loss`, a scalar; arguments as there."""
    if not isinstance(threshold, Tensor) and threshold < 0:
        raise ValueError(f"the threshold on |teacher - label| cannot be negative, got {threshold}")
    teacher_distances = residuals(teacher_predictions.detach(), labels, "teacher predictions and labels")
    if labels.ndim > 1:
        teacher_distances = torch.linalg.vector_norm(teacher_distances, dim=1)
    keep = teacher_distances.abs() <= threshold  # [N]; no square: it would round the two sides of <= apart
    label_errors = squared_norms(residuals(student_predictions, labels, "student predictions and labels"))
    return torch.where(keep, label_errors, 0).sum() / keep.sum().clamp(min=1)


def _teacher_errors(teacher_predictions: Tensor, labels: Tensor) -> Tensor:
    """|t_n - y_n|^2, [N], without a graph."""
    return squared_norms(residuals(teacher_predictions.detach(), labels, "teacher predictions and labels"))
