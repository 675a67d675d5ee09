"""Losses on class logits.

kd_loss: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, 2015
dkd_loss: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679
dist_loss: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536

A temperature may be a tensor that is learned: it then receives the gradient of both softmaxes and of the factor T^2.
A teacher may exclude classes by logits of -inf: their probability is 0, and they add nothing.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_shape
from .precision import full_precision


def kd_loss(
    *,
    student_logits: Tensor,  # [N, K]
    teacher_logits: Tensor,  # [N, K], detached
    temperature: float | Tensor = 4.0,  # one for all, or one a sample as [N] or [N, 1]
) -> Tensor:
    """Knowledge distillation: the student's softened class distribution follows the teacher's.

    L = mean_n T_n^2 KL( softmax(t_n / T_n) || softmax(s_n / T_n) )

    T^2 keeps the size of the gradients when the temperature changes. Returns a scalar.
    Raises ValueError when the shapes differ, and for a temperature that is not positive or fits neither batch nor sample.
    """
    _check_logits(student_logits, teacher_logits)
    temperature = _row_temperature(temperature, len(student_logits))
    student = full_precision(student_logits) / temperature
    teacher = _finite(teacher_logits) / temperature
    return (temperature**2 * _divergence(student, teacher)).mean()


def dkd_loss(
    *,
    student_logits: Tensor,  # [N, K]
    teacher_logits: Tensor,  # [N, K], detached
    labels: Tensor,  # [N] class ids
    alpha: float = 1.0,  # weight of the target-class term
    beta: float = 8.0,  # weight of the non-target term
    temperature: float | Tensor = 4.0,  # one for all, or one a sample as [N] or [N, 1]
) -> Tensor:
    """Decoupled knowledge distillation: "is it the label" and "which of the others" follow the teacher separately.

    p = softmax(z / T);  b = (p_label, 1 - p_label);  q = softmax(z / T) over the K - 1 classes that are not the label
    TCKD = mean_n T^2 KL(b_t || b_s);  NCKD = mean_n T^2 KL(q_t || q_s);  L = alpha TCKD + beta NCKD

    KD is TCKD + (1 - p_t,label) NCKD sample by sample: a confident teacher hardly teaches the other classes there.
    The label's column is left out of the logits, not masked by a large negative number, and both distributions stay in
    log space, so that value and gradients are finite however certain a network is. With two classes nothing is left to
    distinguish among the others: NCKD is 0, with a warning. Returns a scalar.
    Raises ValueError as kd_loss does, for a single class, and for labels that are not one class id a sample.
    """
    _check_logits(student_logits, teacher_logits)
    count, num_classes = student_logits.shape
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(
            f"dkd_loss needs one class id a sample, [{count}] integers, but labels are {list(labels.shape)} of "
            f"{labels.dtype}; for mixed or soft labels give the class that dominates or use kd_loss"
        )
    if num_classes < 2:
        raise ValueError("dkd_loss compares a class with the others and needs at least two classes, not one")
    if num_classes == 2:
        warnings.warn("two classes leave one class besides the label: NCKD is 0, dkd_loss is alpha TCKD", stacklevel=2)
    temperature = _row_temperature(temperature, count)
    label = labels[:, None].long()  # [N, 1]
    others = torch.arange(num_classes - 1, device=labels.device)
    others = others + (others >= label)  # [N, K - 1], every class but the label

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of label against rest [N, 2], and of the rest [N, K - 1]."""
        rest = logits.gather(1, others)
        return torch.cat([logits.gather(1, label), rest.logsumexp(dim=1, keepdim=True)], dim=1), rest

    student_target, student_rest = split(full_precision(student_logits) / temperature)
    teacher_target, teacher_rest = split(_finite(teacher_logits) / temperature)
    target_term = temperature**2 * _divergence(student_target, teacher_target)  # [N, 1]
    rest_term = temperature**2 * _divergence(student_rest, teacher_rest)  # [N, 1]
    return alpha * target_term.mean() + beta * rest_term.mean()


def dist_loss(
    *,
    student_logits: Tensor,  # [N, K]
    teacher_logits: Tensor,  # [N, K], detached
    beta: float = 1.0,  # weight of the relations between the classes of a sample
    gamma: float = 1.0,  # weight of the relations between the samples of a class
    temperature: float | Tensor = 1.0,  # one for all: a column mixes the samples
) -> Tensor:
    """DIST: the student's probabilities correlate with the teacher's instead of equalling them.

    p = softmax(z / T);  rho = Pearson's correlation, 1e-8 added to the product of norms
    inter = 1 - mean_n rho(p_s[n, :], p_t[n, :]);  intra = 1 - mean_k rho(p_s[:, k], p_t[:, k])
    L = T^2 (beta inter + gamma intra)

    intra says something from three samples on: two points always correlate by +-1, one by 0. A class whose probability
    does not vary in the batch correlates by 0, but as the correlation ignores the scale, its gradient grows as the
    student's spread shrinks: a head that starts at zero gets a gradient of 1e5; start it at random. Returns a scalar.
    Raises ValueError when the shapes differ, and for a temperature that is not one positive number.
    """
    _check_logits(student_logits, teacher_logits)
    temperature = _row_temperature(temperature, 1)
    student = F.softmax(full_precision(student_logits) / temperature, dim=1)
    teacher = F.softmax(_finite(teacher_logits) / temperature, dim=1)
    inter = 1 - _correlation(student, teacher, dim=1).mean()
    intra = 1 - _correlation(student, teacher, dim=0).mean()
    return (temperature**2 * (beta * inter + gamma * intra)).squeeze()


def _finite(logits: Tensor) -> Tensor:
    """Detached logits, -inf replaced by what has the probability 0 as well, but a finite logarithm: 0 * inf is NaN."""
    logits = full_precision(logits.detach())
    lowest = logits.amax(dim=1, keepdim=True) - 1e6
    return torch.where(logits == -torch.inf, lowest, logits)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each row, [N, 1]."""
    log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1, keepdim=True)


def _correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    student, teacher = student - student.mean(dim, keepdim=True), teacher - teacher.mean(dim, keepdim=True)
    norms = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(teacher, dim=dim)
    return (student * teacher).sum(dim) / (norms + 1e-8)


def _row_temperature(temperature: float | Tensor, count: int) -> float | Tensor:
    """A number, or a tensor [1, 1] or [count, 1]: what divides logits [N, K] row by row."""
    if not isinstance(temperature, Tensor):
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it divides the logits and must be positive")
        return temperature
    if temperature.shape not in {(), (1,), (1, 1), (count,), (count, 1)}:
        expected = "[1]" if count == 1 else f"[1], [{count}] or [{count}, 1]"
        raise ValueError(f"temperature has shape {list(temperature.shape)}; give a number or a tensor {expected}")
    return full_precision(temperature).reshape(-1, 1)


def _check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    check_same_shape(student_logits, teacher_logits, "student and teacher logits", "; both need the same classes")
    if student_logits.dim() != 2:
        raise ValueError(f"logits are [samples, classes], not {list(student_logits.shape)}; flatten other dimensions")
