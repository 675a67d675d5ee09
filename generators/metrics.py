"""How good generated images are, from features, predicted labels or class probabilities that someone else computed.

All arithmetic is float64; results are Python floats.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def frechet_distance(*, real_features: Tensor, fake_features: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two feature sets (FID, in whatever feature space is given).

    d = |mu_r - mu_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2)), C the unbiased covariances

    real_features: [N, D]; fake_features: [M, D]. The trace of the root is taken from the symmetric matrix
    C_r^(1/2) C_g C_r^(1/2), which has the eigenvalues of C_r C_g, so covariances of low rank (N <= D) are no problem.
    The estimate is biased upwards when N or M is small: compare only equal sample counts.
    Raises ValueError for fewer than two samples, different widths or features that are not finite.
    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, eq. 6.
    """
    if real_features.shape[1:] != fake_features.shape[1:]:
        raise ValueError(
            f"real and fake features differ in width: {list(real_features.shape)} and {list(fake_features.shape)}"
        )
    real_mean, real_covariance = _moments(real_features, "real")
    fake_mean, fake_covariance = _moments(fake_features, "fake")

    values, vectors = torch.linalg.eigh(real_covariance)
    real_root = (vectors * _without_noise(values).sqrt()) @ vectors.T
    product = real_root @ fake_covariance @ real_root
    trace_of_root = _without_noise(torch.linalg.eigvalsh((product + product.T) / 2)).sqrt().sum()

    distance = (real_mean - fake_mean).square().sum()
    distance = distance + real_covariance.trace() + fake_covariance.trace() - 2 * trace_of_root
    return distance.clamp_min(0).item()  # equal samples leave a rounding of either sign


def label_entropy(*, labels: Tensor) -> float:
    """Shannon entropy, in nats, of the class frequencies in labels [N]: the diversity of a set of generated images.

    labels: a classifier's decisions on images that share one conditioning label. Raises ValueError for no labels.
    Source: Ding et al., "CcGAN", ICLR 2021 (arXiv 2011.07466), "Diversity".
    """
    if labels.numel() == 0:
        raise ValueError("label_entropy needs at least one label")
    counts = torch.unique(labels, return_counts=True)[1].double()
    frequencies = counts / counts.sum()
    return -(frequencies * frequencies.log()).sum().item()


@torch.no_grad()
def label_score(
    *,
    predicted_labels: Tensor,  # [N] or [N, 1]: a regressor's predictions on the fakes, normalised, not clipped
    assigned_labels: Tensor,  # [N] or [N, 1]: the labels the generator was given, normalised
    label_min: float,
    label_max: float,
) -> tuple[float, float]:
    """Mean and population standard deviation of |predicted - assigned| in raw units; lower is better.

    Raises ValueError when the numbers of labels differ or are zero.
    Source: Ding et al., "CcGAN", ICLR 2021, "Label Score".
    """
    predicted, assigned = predicted_labels.double().reshape(-1), assigned_labels.double().reshape(-1)
    if len(predicted) != len(assigned) or len(predicted) == 0:
        raise ValueError(
            f"label_score needs as many predicted as assigned labels, got {len(predicted)} and {len(assigned)}"
        )
    errors = (predicted - assigned).abs() * (label_max - label_min)
    return errors.mean().item(), errors.std(correction=0).item()


@torch.no_grad()
def inception_score(*, probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and population standard deviation over splits of exp( mean_n KL(p(y|x_n) || p(y)) ), p(y) per split.

    probabilities: [N, K], rows summing to one, in the order of generation: rows sorted by class would leave one class
    per split and a score of 1. N need not be a multiple of splits; every row is used.
    Raises ValueError when there are fewer rows than splits.
    Source: Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016, section 4.
    """
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"splits must lie between 1 and the {len(probabilities)} rows of probabilities, got {splits}")
    scores = []
    for part in probabilities.double().tensor_split(splits):  # [N / splits, K]
        marginal = part.mean(dim=0)
        divergences = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(dim=1)  # 0 ln 0 = 0
        scores.append(divergences.mean().exp())
    scores = torch.stack(scores)
    return scores.mean().item(), scores.std(correction=0).item()


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D]."""
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"{name}_features must be [N, D] with at least two samples, got {list(features.shape)}")
    features = features.double()
    if not features.isfinite().all():
        raise ValueError(f"{name}_features hold values that are not finite: look at the images or the feature network")
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _without_noise(eigenvalues: Tensor) -> Tensor:
    """Set what is rounding of a zero eigenvalue to zero: its square root, 1e-8, would add up over thousands of them."""
    tolerance = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > tolerance, eigenvalues, 0.0)
