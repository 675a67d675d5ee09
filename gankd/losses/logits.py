"""Losses on class logits.

kd_loss: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, 2015
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kd_loss(
    *,
    student_logits: Tensor,  # [N, K]
    teacher_logits: Tensor,  # [N, K], detached
    temperature: float = 4.0,
) -> Tensor:
    """Knowledge distillation: the student's softened class distribution follows the teacher's.

    L = T^2 / N * sum_n KL( softmax(t_n / T) || softmax(s_n / T) )

    T^2 keeps the size of the gradients when the temperature changes. Returns a scalar.
    Raises ValueError when the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits differ in shape: {list(student_logits.shape)} "
            f"and {list(teacher_logits.shape)}; both need the same classes"
        )
    log_student = F.log_softmax(_full_precision(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(_full_precision(teacher_logits.detach()) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return temperature**2 * divergence / len(student_logits)


def _full_precision(tensor: Tensor) -> Tensor:
    """float32, or float64 if it already is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
