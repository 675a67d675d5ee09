"""Rejection sampling of cDR-RS as the paper writes it (arXiv 2103.11166); `selection.subsample` is compared with it."""

import torch
from torch import Tensor


def acceptance(*, density_ratios: Tensor, uniforms: Tensor, max_ratio: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rejection sampling of one batch with ratios [N] and uniforms [N] in [0, 1): accept where u <= p = r / M.

    The bound M first grows to the batch's own maximum. Returns (accepted bool [N], p [N], the updated M).
    """
    bound = torch.maximum(torch.as_tensor(max_ratio, dtype=density_ratios.dtype), density_ratios.max())
    probabilities = density_ratios / bound
    return uniforms <= probabilities, probabilities, bound


def rejection_sample(*, burnin_ratios: Tensor, density_ratios: Tensor, uniforms: Tensor, num_samples: int) -> Tensor:
    """Flat indices (int64) of the first `num_samples` accepted among rounds of candidates, ratios and uniforms [R, N].

    The bound starts at the maximum of the burn-in's ratios and only grows; earlier acceptances are not revisited.
    """
    bound = torch.maximum(density_ratios.amax(dim=1).cummax(dim=0).values, burnin_ratios.max())
    accepted = uniforms <= density_ratios / bound[:, None]
    return accepted.flatten().nonzero().flatten()[:num_samples]
