"""Losses on scalar (or vector) predictions.

regression_kd_loss: the direct analogue of logit distillation for a regressor, the starting point of Saputra et al.,
"Distilling Knowledge From a Deep Pose Regressor Network", ICCV 2019, arXiv 1908.00858
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    Raises ValueError when the shapes differ or the loss is unknown.
    """
    if student_predictions.shape != teacher_predictions.shape:  # [N] against [N, 1] would broadcast to [N, N]
        raise ValueError(
            f"student and teacher predictions differ in shape: {list(student_predictions.shape)} "
            f"and {list(teacher_predictions.shape)}"
        )
    residuals = _full_precision(student_predictions) - _full_precision(teacher_predictions.detach())
    sizes = residuals.abs()
    if loss == "l2":
        losses = residuals.square()
    elif loss == "l1":
        losses = sizes
    elif loss == "huber":
        losses = torch.where(sizes <= delta, residuals.square() / 2, delta * (sizes - delta / 2))
    else:
        raise ValueError(f"unknown regression loss {loss!r}: use 'l2', 'l1' or 'huber'")
    return losses.sum() / len(residuals)


def _full_precision(tensor: Tensor) -> Tensor:
    """float32, or float64 if it already is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
