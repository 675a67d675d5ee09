"""Losses on scalar (or vector) predictions that learn from peers, or from the network's own answers.

mutual_regression_loss: after Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384
regression_ensemble_weights: Krogh, Vedelsby, "Neural Network Ensembles, Cross Validation, and Active Learning",
    NIPS 1995; Guo et al., "Online Knowledge Distillation via Collaborative Learning" (KDCL), CVPR 2020
mixup_regression_loss: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    arXiv 1710.09412
mixskd_regression_loss: after Yang et al., "MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition",
    ECCV 2022, arXiv 2208.05768

The papers behind mutual learning and MixSKD know classes only; here squares stand for their divergences.
"""

import torch
from torch import Tensor

from .checks import check_same_shape
from .mixing import mixup_batch
from .precision import full_precision
from .residuals import mean_loss, residuals, squared_norms


def mutual_regression_loss(
    *,
    student_predictions: list[Tensor],  # m students, each [N] or [N, D]
    labels: Tensor,  # the same shape
    kd_weight: float = 1.0,
    loss: str = "l2",  # "l2", "l1" or "huber"
    delta: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Students that learn together follow the labels and each other.

    L = sum_i l(s_i - y) + kd_weight / (m - 1) * sum_i sum_{j != i} l(s_i - [s_j]),  [.] detached

    with l the mean over samples of the l2, l1 or Huber loss as in regression_kd_loss.
    Returns (L, the label terms, the mutual terms over m - 1 before their weight).
    Raises ValueError with fewer than two students, when the shapes differ or the loss is unknown.
    """
    num_students = len(student_predictions)
    if num_students < 2:
        raise ValueError(f"mutual learning needs at least two students, got {num_students}")
    label_terms, mutual_terms = [], []
    for i, predictions in enumerate(student_predictions):
        to_labels = residuals(predictions, labels, f"predictions of student {i} and labels")
        label_terms.append(mean_loss(to_labels, loss, delta))
        for j, peer_predictions in enumerate(student_predictions):
            if j != i:
                to_peer = residuals(predictions, peer_predictions, f"predictions of students {i} and {j}")
                mutual_terms.append(mean_loss(to_peer, loss, delta))
    label_term = torch.stack(label_terms).sum()
    mutual_term = torch.stack(mutual_terms).sum() / (num_students - 1)
    return label_term + kd_weight * mutual_term, label_term, mutual_term


def regression_ensemble_weights(
    *,
    predictions: list[Tensor],  # m students, each [N] or [N, D], on held-out samples, detached
    labels: Tensor,  # the same shape
) -> Tensor:
    """The weights, summing to 1, with which the ensemble's squared error is smallest.

    a = C^-1 1 / (1' C^-1 1),  C_ij = mean_n (s_i - y) . (s_j - y)

    A weight may be negative. Students that agree make C singular, so 1e-6 of its trace is added to its diagonal, which
    gives equal students equal shares; C is taken in float64 on the CPU. On training samples, whose errors overfitted
    students have driven to zero, the weights mean nothing. Returns [m].
    Raises ValueError without students or when the shapes differ.
    """
    if not predictions:
        raise ValueError("ensemble weights need the predictions of at least one student, got none")
    for i, student in enumerate(predictions):
        check_same_shape(student, labels, f"predictions of student {i} and labels")
    targets = labels.detach().cpu().double()
    errors = torch.stack([(student.detach().cpu().double() - targets).flatten() for student in predictions])  # [m, N D]
    correlations = errors @ errors.T  # N times C: a factor leaves the weights alone
    # students without any error have C = 0: they too get equal shares
    ridge = (1e-6 * correlations.trace()).clamp(min=1e-30)
    ones = correlations.new_ones(len(predictions))
    solution = torch.linalg.solve(correlations + ridge * torch.eye(len(predictions), dtype=torch.float64), ones)
    return (solution / solution.sum()).to(full_precision(predictions[0]))


def mixup_regression_loss(
    *,
    student_predictions: Tensor,  # [N] or [N, D], on mixing * x + (1 - mixing) * x[permutation]
    labels: Tensor,  # the same shape, of the unmixed images x
    permutation: Tensor,  # [N], a permutation of the batch
    mixing: float,  # lambda of the whole batch, in [0, 1]
) -> Tensor:
    """The prediction on a mixture of two images is the same mixture of their labels.

    L = mean_n |s_n - (lambda y_n + (1 - lambda) y_perm(n))|^2
    """
    mixed_labels = mixup_batch(images=full_precision(labels), permutation=permutation, mixing=mixing)
    return squared_norms(residuals(student_predictions, mixed_labels, "student predictions and labels")).mean()


def mixskd_regression_loss(
    *,
    predictions: Tensor,  # [N] or [N, D], on the unmixed images x
    mixed_predictions: Tensor,  # the same shape, on mixing * x + (1 - mixing) * x[permutation]
    permutation: Tensor,  # [N], a permutation of the batch
    mixing: float,  # lambda of the whole batch, in [0, 1]
) -> tuple[Tensor, Tensor, Tensor]:
    """The prediction m on a mixture of two images and the mixture i of their predictions follow each other.

    L = mean_n |m_n - [i_n]|^2 + mean_n |i_n - [m_n]|^2,  i_n = lambda s_n + (1 - lambda) s_perm(n),  [.] detached

    Returns (L, the term that moves m, the term that moves i): the two terms have one value and different gradients.
    """
    names = "predictions on mixed and on unmixed images"
    interpolated = mixup_batch(images=full_precision(predictions), permutation=permutation, mixing=mixing)
    mixed_follows = squared_norms(residuals(mixed_predictions, interpolated, names)).mean()
    interpolated_follows = squared_norms(residuals(interpolated, mixed_predictions, names)).mean()
    return mixed_follows + interpolated_follows, mixed_follows, interpolated_follows
