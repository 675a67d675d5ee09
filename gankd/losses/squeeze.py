"""Losses that distil a generator's internal features into a student that sees the generator's images.

squeeze_loss, span_loss, squeeze_and_span_loss: Yang et al., "Distilling Representations from GAN Generator via Squeeze
and Span", NeurIPS 2022, arXiv 2211.03000
invariance_loss, variance_loss, covariance_loss: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance
Regularization for Self-Supervised Learning", ICLR 2022, arXiv 2105.04906
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_batch, check_same_shape
from .precision import full_precision


def invariance_loss(
    *,
    embeddings_a: Tensor,  # [N, D]
    embeddings_b: Tensor,  # [N, D]
) -> Tensor:
    """Two views of one sample should have one embedding.

    L = 1/(N D) sum_nd (a_nd - b_nd)^2

    The gradient flows to both arguments: the squeezed features of a generator are trained by it too.
    """
    check_same_shape(embeddings_a, embeddings_b, "the two sides' embeddings")
    return (full_precision(embeddings_a) - full_precision(embeddings_b)).square().mean()


def variance_loss(
    *,
    embeddings: Tensor,  # [N, D]
    eps: float = 1e-4,  # keeps the gradient finite where a dimension has collapsed
    target_std: float = 1.0,
) -> Tensor:
    """Every dimension should vary over the batch, so that the embeddings cannot collapse to a point.

    L = 1/D sum_d max(0, target_std - sqrt(Var_d + eps)), with Var_d unbiased over the batch

    Under data parallelism the batch is that of all processes: gather the embeddings with their gradient first.
    Returns a scalar. Raises ValueError for fewer than two samples, which have no variance.
    """
    _check_batch(embeddings)
    deviations = (full_precision(embeddings).var(dim=0) + eps).sqrt()
    return F.relu(target_std - deviations).mean()


def covariance_loss(
    *,
    embeddings: Tensor,  # [N, D]
) -> Tensor:
    """No two dimensions should carry the same information.

    C = Zc^T Zc / (N - 1) with Zc centred over the batch;  L = 1/D sum_{i != j} C_ij^2

    Costs a D x D matrix. One dimension costs 0. Under data parallelism: as `variance_loss`. Returns a scalar.
    Raises ValueError for fewer than two samples, which have no covariance.
    """
    _check_batch(embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        centred = full_precision(embeddings)
        centred = centred - centred.mean(dim=0)
        covariance = centred.T @ centred / (len(centred) - 1)  # [D, D]
    # the diagonal goes before the sum: subtracted from it afterwards, it would leave nothing but rounding
    return covariance.fill_diagonal_(0).square().sum() / len(covariance)


def squeeze_loss(
    *,
    student_embedding: Tensor,  # [N, D], of the augmented synthetic images
    squeezed_embedding: Tensor,  # [N, D], of the generator's features for them; trained, so not detached
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    regularize_squeezed: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The student finds in an augmented synthetic image what a trained network T keeps of the generator's features.

    L = lambda inv(T, S) + mu [var(S) + var(T)] + nu [cov(S) + cov(T)], terms as in the losses of those names

    Without `regularize_squeezed` the terms of T are left out, as in the authors' released code; the paper's figure has
    them. Without variance (mu = 0) a trained T collapses. Returns the scalars (total, invariance, variance,
    covariance), the terms unweighted and summed over the regularised sides.
    Raises ValueError when the shapes differ or the batch holds fewer than two samples.
    """
    weights = (invariance_weight, variance_weight, covariance_weight)
    regularised = [student_embedding, squeezed_embedding] if regularize_squeezed else [student_embedding]
    return _regularised_invariance(student_embedding, squeezed_embedding, regularised, weights)


def span_loss(
    *,
    student_embedding_a: Tensor,  # [N, D], of one augmentation of real images
    student_embedding_b: Tensor,  # [N, D], of another
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The student's embedding of a real image survives augmentation: VICReg, which spans what the generator misses.

    L = lambda inv(a, b) + mu [var(a) + var(b)] + nu [cov(a) + cov(b)], terms as in the losses of those names

    Returns the scalars (total, invariance, variance, covariance), the terms unweighted and summed over the two views.
    Raises ValueError when the shapes differ or the batch holds fewer than two samples.
    """
    views, weights = [student_embedding_a, student_embedding_b], (invariance_weight, variance_weight, covariance_weight)
    return _regularised_invariance(*views, views, weights)


def squeeze_and_span_loss(
    *,
    student_embedding: Tensor,  # [N, D], of the augmented synthetic images
    squeezed_embedding: Tensor,  # [N, D], of the generator's features for them; trained, so not detached
    student_embedding_real_a: Tensor,  # [M, D], of one augmentation of real images
    student_embedding_real_b: Tensor,  # [M, D], of another
    synthetic_ratio: float = 0.5,  # r, in [0, 1]
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    regularize_squeezed: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Squeeze on synthetic images and span on real ones.

    L = r L_squeeze + (1 - r) L_span

    Returns the scalars (total, total of `squeeze_loss`, total of `span_loss`).
    Raises ValueError as these two do, and for a ratio outside [0, 1].
    """
    if not 0 <= synthetic_ratio <= 1:
        raise ValueError(f"synthetic_ratio is {synthetic_ratio:g}; give a share between 0 and 1")
    weights = (invariance_weight, variance_weight, covariance_weight)
    squeezed, real = [student_embedding, squeezed_embedding], [student_embedding_real_a, student_embedding_real_b]
    squeeze = _regularised_invariance(*squeezed, squeezed if regularize_squeezed else squeezed[:1], weights)[0]
    span = _regularised_invariance(*real, real, weights)[0]
    return synthetic_ratio * squeeze + (1 - synthetic_ratio) * span, squeeze, span


def pool_generator_features(
    *,
    generator_features: Sequence[Tensor],  # each a map [N, C, H, W], tokens [N, T, C] or a vector [N, C]; detached
) -> Tensor:
    """A generator's features of each image as one vector: every map averaged over space, tokens over their sequence.

    Returns [N, sum C], in the order given.
    Raises ValueError for an empty list, another number of dimensions, or batches that differ in size.
    """
    if not generator_features:
        raise ValueError("there are no generator features; name at least one block of the generator")
    pooled = []
    for index, feature in enumerate(generator_features):
        feature = full_precision(feature.detach())
        if feature.ndim == 4:
            feature = feature.mean(dim=(2, 3))
        elif feature.ndim == 3:
            feature = feature.mean(dim=1)
        elif feature.ndim != 2:
            raise ValueError(
                f"generator feature {index} has shape {list(feature.shape)}; expected [N, C, H, W], [N, T, C] or [N, C]"
            )
        pooled.append(feature)
        check_same_batch(pooled[0], feature, "generator features")
    return torch.cat(pooled, dim=1)


def _regularised_invariance(
    embeddings_a: Tensor, embeddings_b: Tensor, regularised: list[Tensor], weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    invariance = invariance_loss(embeddings_a=embeddings_a, embeddings_b=embeddings_b)
    variance = sum(variance_loss(embeddings=side) for side in regularised)
    covariance = sum(covariance_loss(embeddings=side) for side in regularised)
    total = weights[0] * invariance + weights[1] * variance + weights[2] * covariance
    return total, invariance, variance, covariance


def _check_batch(embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(
            f"embeddings have shape {list(embeddings.shape)}; variances over the batch need [N, D] with at least two "
            "samples (drop the last, short batch of an epoch)"
        )
