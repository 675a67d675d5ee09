"""Losses of regressors that predict a distribution: logits over bins, or a mean and a variance.

label_distribution, distribution_expectation, label_distribution_loss: Gao, Xing, Xie, Wu, Geng, "Deep Label
    Distribution Learning with Label Ambiguity" (DLDL), TIP 2017, arXiv 1611.01731; Gao, Zhou, Wu, Geng, "Age Estimation
    Using Expectation of Label Distribution Learning" (DLDL-v2), IJCAI 2018
gaussian_nll_loss, gaussian_kd_loss: the output head of Kendall, Gal, "What Uncertainties Do We Need in Bayesian Deep
    Learning for Computer Vision?", NeurIPS 2017, arXiv 1703.04977, and the divergence of two of its outputs
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_shape, shapes
from .precision import full_precision
from .residuals import residuals

NUM_BINS = 64


def label_distribution(
    *,
    labels: Tensor,  # [N]
    bins: Tensor,  # [B], the bins' centres, in the labels' units
    sigma: float,  # width, in the labels' units; below the bins' spacing the distribution is almost one-hot
) -> Tensor:
    """A Gaussian around each label at the bins' centres, renormalised.

    p_nb = softmax over b of -(y_n - b)^2 / (2 sigma^2)

    A label outside the bins falls on the nearest end bin, and near the ends the expectation is pulled inwards: give the
    bins 2 sigma beyond the labels on either side. Returns [N, B]. Raises ValueError when sigma is not positive or the
    labels are not [N].
    """
    return _log_label_distribution(labels, bins, sigma).exp()


def distribution_expectation(
    *,
    student_logits: Tensor,  # [N, B]
    bins: Tensor,  # [B], the bins' centres
    temperature: float = 1.0,
) -> Tensor:
    """The prediction of a head of logits over bins.

    E_n = sum_b softmax(z_n / temperature)_b * b

    Returns [N], in the units of the bins. Raises ValueError when logits and bins differ in number or the temperature is
    not positive.
    """
    if student_logits.shape[1:] != bins.shape:
        raise ValueError(
            f"the head has logits {list(student_logits.shape)} for bins {list(bins.shape)}; it needs one logit a bin"
        )
    if temperature <= 0:
        raise ValueError(f"the temperature of the expectation must be positive, got {temperature}")
    probabilities = F.softmax(full_precision(student_logits) / temperature, dim=1)
    return (probabilities * full_precision(bins)).sum(1)  # no matrix product, which autocast would round


def label_distribution_loss(
    *,
    student_logits: Tensor,  # [N, B]
    labels: Tensor,  # [N], detached; a scalar teacher's predictions do as well
    bins: Tensor,  # [B], the bins' centres, in the labels' units
    sigma: float,  # for labels: see label_distribution; for a teacher's predictions: its RMS error on validation data
    expectation_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The head's distribution follows the label's, its expectation the label.

    L = mean_n KL( p(y_n) || softmax(z_n) ) + expectation_weight * mean_n |E_n - y_n|

    with p = label_distribution and E = distribution_expectation. The second term grows with the labels' units.
    Returns (L, the divergence, the expectation's mean absolute error before its weight).
    Raises ValueError when logits, bins and labels do not belong together or sigma is not positive.
    """
    expectations = distribution_expectation(student_logits=student_logits, bins=bins)
    error_term = residuals(expectations, labels, "the head's expectations and labels").abs().mean()
    log_student = F.log_softmax(full_precision(student_logits), dim=1)
    log_labels = _log_label_distribution(labels.detach(), bins, sigma)
    divergence_term = F.kl_div(log_student, log_labels, reduction="batchmean", log_target=True)
    return divergence_term + expectation_weight * error_term, divergence_term, error_term


def gaussian_nll_loss(
    *,
    student_mean: Tensor,  # [N] or [N, D]
    student_log_variance: Tensor,  # the same shape
    labels: Tensor,  # the same shape
) -> Tensor:
    """Negative log-likelihood of the labels under the head's Gaussian, without its constant ln(2 pi) / 2.

    L = mean_n sum_d ( v + (mu - y)^2 e^-v ) / 2,  v clamped to [-10, 10]

    A log variance beyond the clamp gets no gradient. Hard samples first raise their variance, which shrinks the
    gradient of their mean: a warm-up with v = 0 avoids that. Returns a scalar. Raises ValueError when the shapes differ.
    """
    differences = residuals(student_mean, labels, "means and labels")
    log_variance = _clamped_log_variance(student_mean, student_log_variance)
    return (log_variance + differences.square() * (-log_variance).exp()).sum() / 2 / len(differences)


def gaussian_kd_loss(
    *,
    student_mean: Tensor,  # [N] or [N, D]
    student_log_variance: Tensor,  # the same shape
    teacher_mean: Tensor,  # the same shape, detached
    teacher_log_variance: Tensor,  # the same shape, detached
) -> Tensor:
    """The student's Gaussian follows the teacher's, uncertainty included.

    L = mean_n sum_d KL( N_t || N_s ) = mean_n sum_d ( v_s - v_t + (e^v_t + (mu_s - mu_t)^2) e^-v_s - 1 ) / 2

    v clamped to [-10, 10]: a log variance beyond gets no gradient.
    """
    differences = residuals(student_mean, teacher_mean, "student and teacher means")
    student = _clamped_log_variance(student_mean, student_log_variance)
    teacher = _clamped_log_variance(teacher_mean, teacher_log_variance).detach()
    ratio = teacher - student  # ln of the variances' ratio; expm1(r) - r >= 0 keeps what e^r - 1 - r loses near 0
    return (torch.expm1(ratio) - ratio + differences.square() * (-student).exp()).sum() / 2 / len(differences)


def _log_label_distribution(labels: Tensor, bins: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        raise ValueError(f"the width sigma of a label distribution must be positive, got {sigma}")
    if labels.ndim != 1 or bins.ndim != 1:
        raise ValueError(f"a label distribution needs labels [N] and bins [B], got {shapes(labels, bins)}")
    distances = full_precision(labels)[:, None] - full_precision(bins)  # [N, B]
    return F.log_softmax(-(distances / sigma).square() / 2, dim=1)


def _clamped_log_variance(mean: Tensor, log_variance: Tensor) -> Tensor:
    check_same_shape(mean, log_variance, "means and log variances")
    return full_precision(log_variance).clamp(-10, 10)  # variances of 5e-5 to 2e4


def uniform_bins(
    low: float, high: float, num_bins: int = NUM_BINS, sigma: float | None = None
) -> tuple[tuple[float, ...], float]:
    """Centres of bins uniform over [low, high] widened by 2 sigma at both ends, and sigma, the width of a label among them.

    Without the widening, expectations near the ends would be pulled inwards. sigma None: the larger of the bins' spacing
    and 2 % of the range; the spacing (high - low + 4 sigma) / (num_bins - 1) equals sigma at (high - low) / (num_bins - 5).
    Raises ValueError: fewer than 6 bins, or a sigma that is not positive.
    """
    if num_bins < 6:
        raise ValueError(f"{num_bins} bins (task.num_bins) are too few for a distribution over them: give 6 or more.")
    if sigma is None:
        sigma = max((high - low) / (num_bins - 5), 0.02 * (high - low))
    first, last = low - 2 * sigma, high + 2 * sigma
    return tuple(first + (last - first) * index / (num_bins - 1) for index in range(num_bins)), sigma
