"""How good generated images are, from features, predicted labels or class probabilities that someone else computed.

All arithmetic is float64; results are Python floats. `frechet_score` is for watching a training: it draws the images too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from generators.checks import check_range
from generators.images import from_generator_range
from generators.interface import ConditionalGenerator, evaluating
from generators.randomness import seeded


@torch.no_grad()
def frechet_distance(*, real_features: Tensor, fake_features: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two feature sets (FID, in whatever feature space is given).

    d = |mu_r - mu_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2)), C the unbiased covariances

    real_features: [N, D]; fake_features: [M, D]. Covariances of low rank (N <= D) are no problem: see `_trace_of_root`.
    The estimate is biased upwards when N or M is small: compare only equal sample counts.
    Raises ValueError for fewer than two samples, different widths or features that are not finite.
    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, eq. 6.
    """
    _check_widths(real_features, fake_features)
    real_mean, real = _mean_and_root(real_features, "real")
    fake_mean, fake = _mean_and_root(fake_features, "fake")
    distance = (real_mean - fake_mean).square().sum()
    distance = distance + real.square().sum() + fake.square().sum() - 2 * _trace_of_root(real, fake)
    return distance.clamp_min(0).item()  # equal samples leave a rounding of either sign


@torch.no_grad()
def density_coverage(
    *, real_features: Tensor, fake_features: Tensor, neighbours: int = 5, chunk_size: int = 1000
) -> tuple[float, float]:
    """Density and coverage of fakes among the balls B(X_i, r_i) around the reals, r_i the distance to the k-th neighbour.

    density  = 1 / (k M) sum_j sum_i 1[ Y_j in B(X_i, r_i) ]: fidelity, 1 on average for fakes as good as the reals
    coverage = 1 / N sum_i 1[ some Y_j in B(X_i, r_i) ]: diversity, in [0, 1]

    real_features: X [N, D]; fake_features: Y [M, D]; neighbours: k. Balls are open, so that a set compared with itself has
    density 1. Needs memory for chunk_size * max(N, M) distances.
    Raises ValueError for different widths, no fakes or N <= k.
    Source: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020, section 3.
    """
    _check_widths(real_features, fake_features)
    if len(real_features) <= neighbours or len(fake_features) == 0:
        raise ValueError(
            f"density and coverage with {neighbours} neighbours need at least {neighbours + 1} real and one fake sample, "
            f"got {len(real_features)} and {len(fake_features)}"
        )
    real, fake = real_features.double(), fake_features.double()
    real, fake = real - real.mean(dim=0), fake - real.mean(dim=0)  # small numbers leave small roundings in cdist
    num_inside = num_covered = 0
    for chunk in real.split(chunk_size):  # [B, D]
        radii = torch.cdist(chunk, real).kthvalue(neighbours + 1).values  # [B]; + 1: a sample is its own neighbour
        inside = torch.cdist(chunk, fake) < radii[:, None] * (1 - 1e-7)  # [B, M]; on the border is outside
        num_inside += inside.sum().item()
        num_covered += inside.any(dim=1).sum().item()
    return num_inside / (neighbours * len(fake)), num_covered / len(real)


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
    """Mean and population standard deviation of |predicted - assigned| in raw units; lower is better. Raises ValueError
    when the numbers of labels differ or are zero. Source: Ding et al., "CcGAN", ICLR 2021, "Label Score"."""
    predicted, assigned = predicted_labels.double().reshape(-1), assigned_labels.double().reshape(-1)
    if len(predicted) != len(assigned) or len(predicted) == 0:
        raise ValueError(f"label_score needs as many predictions as labels, got {len(predicted)} and {len(assigned)}")
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


def evenly_spread(labels: Tensor, count: int) -> Tensor:
    """Indices (int64 [count]) of samples whose labels are distributed like all labels [N]: every (N / count)-th when sorted.

    With count > N every sample comes floor or ceil(count / N) times. A function of the labels alone.
    """
    return labels.argsort(stable=True)[torch.arange(count, device=labels.device) * len(labels) // count]


@torch.no_grad()
def draw_images(generator: ConditionalGenerator, labels: Tensor, *, seed: int, batch_size: int = 256) -> Tensor:
    """Images uint8 [N, C, H, W] on the CPU for labels [N] in the user's units; the latents are a function of `seed`.

    generator: draws in evaluation mode and is left in the mode in which it was.
    Raises ValueError when its images leave [-1, 1], which clamping to uint8 would hide.
    """
    random, images = seeded(seed, "evaluation"), []
    with evaluating(generator):
        for part in labels.split(batch_size):
            drawn = generator.sample(part, generator.draw_latents(len(part), generator=random))
            check_range(drawn, type(generator).__name__)
            images.append(from_generator_range(drawn).cpu())
    return torch.cat(images)


@torch.no_grad()
def frechet_score(
    *,
    generator: ConditionalGenerator,
    features_of: Callable[[Tensor], Tensor],
    real_features: Tensor,
    labels: Tensor,
    seed: int = 0,
    batch_size: int = 256,
) -> float:
    """Frechet distance between real features [N, D] and those of images that `generator` draws for labels [M] now.

    features_of: uint8 images [B, C, H, W] on the CPU to features [B, D] of a frozen network, as real_features were made.
    labels: in the user's units, distributed like the real ones (`evenly_spread`).
    The latents are the same at every call with one seed, so that two scores differ by the generator alone.
    Raises ValueError as `draw_images` and `frechet_distance`.
    """
    images = draw_images(generator, labels, seed=seed, batch_size=batch_size)
    fake_features = torch.cat([features_of(part).cpu() for part in images.split(batch_size)])
    return frechet_distance(real_features=real_features.cpu(), fake_features=fake_features)


def _check_widths(real: Tensor, fake: Tensor) -> None:
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"real and fake features differ in width: {list(real.shape)} and {list(fake.shape)}")


def _mean_and_root(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean [D] and A [N, D] with A^T A the unbiased covariance of features [N, D]."""
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"{name}_features must be [N, D] with at least two samples, got {list(features.shape)}")
    features = features.double()
    if not features.isfinite().all():
        raise ValueError(f"{name}_features hold values that are not finite: look at the images or the feature network")
    mean = features.mean(dim=0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5


def _trace_of_root(real: Tensor, fake: Tensor) -> Tensor:
    """tr (C_r C_g)^(1/2) for C_r = A^T A, C_g = B^T B; real: A [N, D], fake: B [M, D].

    The eigenvalues of C_r C_g are those of the symmetric C_r^(1/2) C_g C_r^(1/2), and the squared singular values of A B^T:
    the smaller of the two matrices, D x D or N x M, is taken apart (one class of a many-dimensional feature is N << D).
    """
    if len(real) * len(fake) <= real.shape[1] ** 2:
        return torch.linalg.svdvals(real @ fake.T).sum()
    values, vectors = torch.linalg.eigh(real.T @ real)
    half = (vectors * _without_noise(values).sqrt()) @ vectors.T
    product = half @ (fake.T @ fake) @ half
    return _without_noise(torch.linalg.eigvalsh((product + product.T) / 2)).sqrt().sum()


def _without_noise(eigenvalues: Tensor) -> Tensor:
    """Set what is rounding of a zero eigenvalue to zero: its square root, 1e-8, would add up over thousands of them."""
    tolerance = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > tolerance, eigenvalues, 0.0)
