"""Vicinities of a continuous label: which real images, and which fake labels, may stand in for a target label.

Ding et al., "CcGAN: Continuous Conditional Generative Adversarial Networks for Image Generation", ICLR 2021
(arXiv 2011.07466). Labels are normalised to [0, 1]. A target label is a training label plus noise of width sigma; an
image helps at target t when its own label lies in [t - w, t + w]:

    hard vicinity   w = kappa
    soft vicinity   w = sqrt(-ln(weight_threshold) / kappa), weight exp(-kappa (y - t)^2) >= weight_threshold

The arithmetic runs in float64: windows of dense label sets are narrower than float32 resolves safely.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalize_labels(*, labels: Tensor, label_min: float, label_max: float) -> Tensor:
    """(labels - label_min) / (label_max - label_min), any shape; label_min and label_max in the labels' raw units.

    Integer labels come back as float32. Raises ValueError when label_max is not above label_min.
    """
    _check_range(label_min, label_max)
    return ((labels.double() - label_min) / (label_max - label_min)).to(_floating_dtype(labels))


def denormalize_labels(*, labels: Tensor, label_min: float, label_max: float) -> Tensor:
    """Inverse of `normalize_labels`: labels * (label_max - label_min) + label_min, not clipped."""
    _check_range(label_min, label_max)
    return (labels.double() * (label_max - label_min) + label_min).to(_floating_dtype(labels))


def sigma_rule_of_thumb(*, labels: Tensor) -> float:
    """Width of the label noise: 1.06 * (population standard deviation) * N^(-1/5).

    labels: [N], normalised, one per sample (not only the distinct ones). The rule comes from kernel density estimation
    with a Gaussian kernel and smooths too much where labels are few: for N = 100 it is about a tenth of the range.
    Raises ValueError for an empty set. Source: Ding et al., ICLR 2021, rule of thumb (Silverman's).
    """
    if labels.numel() == 0:
        raise ValueError("sigma's rule of thumb needs at least one label")
    return 1.06 * labels.double().std(correction=0).item() * labels.numel() ** (-1 / 5)


def kappa_rule_of_thumb(*, labels: Tensor, multiplier: float, vicinity: str) -> float:
    """Vicinity parameter from the widest gap between neighbouring distinct labels.

    base = multiplier * max gap;  hard: kappa = base;  soft: kappa = 1 / base^2 (the paper's nu)

    labels: [N]; multiplier: the paper's m_kappa, 1 to 5. One isolated label widens the window for every target.
    Raises ValueError for fewer than two distinct labels, a multiplier that is not positive or an unknown vicinity.
    Source: Ding et al., ICLR 2021, rule of thumb.
    """
    distinct = torch.unique(labels.double())  # sorted
    if len(distinct) < 2:
        raise ValueError("kappa's rule of thumb needs at least two distinct labels; give kappa itself")
    if multiplier <= 0:
        raise ValueError(f"kappa's multiplier must be positive, got {multiplier}")
    base = multiplier * distinct.diff().max().item()
    if vicinity == "hard":
        return base
    if vicinity == "soft":
        return 1 / base**2
    raise ValueError(f"unknown vicinity {vicinity!r}: use 'hard' or 'soft'")


def soft_weights(*, labels: Tensor, target_labels: Tensor, kappa: float) -> Tensor:
    """exp(-kappa (labels - target_labels)^2) for labels [N] and targets [N], not normalised to any sum."""
    return torch.exp(-kappa * (labels.double() - target_labels.double()) ** 2).to(_floating_dtype(labels))


def sample_vicinity(
    *,
    train_labels: Tensor,  # [N]: labels of the real images, normalised to [0, 1]
    centres: Tensor,  # [B]: drawn from the DISTINCT training labels, so that rare labels count as much
    noise: Tensor,  # [B, R]: standard normal; column k is the k-th try
    pick: Tensor,  # [B]: uniform in [0, 1), chooses the real image
    place: Tensor,  # [B]: uniform in [0, 1), chooses the fake label
    kappa: float,
    vicinity: str,  # "hard" or "soft"
    sigma: float,
    weight_threshold: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the labels of one discriminator batch: a pure function of the random numbers it is given.

    target t_b:       centre_b + sigma * noise[b, k] for the first try k whose window holds a training label
    real index:       number floor(pick * count) of the `count` training labels in [t - w, t + w], in index order
    fake label:       lower + place * (upper - lower), [lower, upper] = [t - w, t + w] cut to [0, 1]

    When all R tries are empty (a kappa far below the gaps of the labels) the target becomes the training label that is
    nearest to the last try, whose window holds at least that label; the original search would go on for ever.
    Returns (target_labels [B], real_indices [B] int64, fake_labels [B], counts [B] int64), labels in the dtype of
    centres. Costs O((N + B R) log N) whatever the windows hold.
    Raises ValueError for an unknown vicinity, kappa <= 0, a threshold outside (0, 1), no training labels or labels
    outside [0, 1].
    Source: Ding et al., ICLR 2021, training algorithms of HVDL and SVDL.
    """
    half_width = _half_width(kappa, vicinity, weight_threshold)
    if train_labels.numel() == 0:
        raise ValueError("sample_vicinity needs at least one training label")
    sorted_labels, order = train_labels.double().sort()
    if sorted_labels[0] < -1e-6 or sorted_labels[-1] > 1 + 1e-6:  # float32 normalisation may miss 1 by a rounding
        raise ValueError(
            f"train_labels span [{sorted_labels[0].item():g}, {sorted_labels[-1].item():g}]; "
            "normalise them to [0, 1] with normalize_labels"
        )

    tries = centres.double()[:, None] + sigma * noise.double()  # [B, R]
    starts, ends = _windows(sorted_labels, tries, half_width)
    occupied = ends > starts  # [B, R]
    first = occupied.int().argmax(dim=1, keepdim=True)  # argmax returns the first of equal values
    targets = torch.where(
        occupied.any(dim=1), tries.gather(1, first).squeeze(1), _nearest(sorted_labels, tries[:, -1].contiguous())
    )  # [B]

    starts, ends = _windows(sorted_labels, targets, half_width)
    counts = ends - starts
    real_indices = _kth_smallest_in_ranges(order, starts, ends, (pick.double() * counts).long())

    lower, upper = (targets - half_width).clamp(0, 1), (targets + half_width).clamp(0, 1)
    fake_labels = lower + place.double() * (upper - lower)
    return targets.to(centres.dtype), real_indices, fake_labels.to(centres.dtype), counts


def _half_width(kappa: float, vicinity: str, weight_threshold: float) -> float:
    if kappa <= 0:
        raise ValueError(f"kappa must be positive, got {kappa}; kappa_rule_of_thumb turns a multiplier into one")
    if vicinity == "hard":
        return kappa
    if vicinity == "soft":
        if not 0 < weight_threshold < 1:
            raise ValueError(f"weight_threshold must lie between 0 and 1, got {weight_threshold}")
        return math.sqrt(-math.log(weight_threshold) / kappa)
    raise ValueError(f"unknown vicinity {vicinity!r}: use 'hard' or 'soft'")


def _windows(sorted_labels: Tensor, targets: Tensor, half_width: float) -> tuple[Tensor, Tensor]:
    """Half-open ranges [start, end) of sorted_labels inside [target - half_width, target + half_width]."""
    starts = torch.searchsorted(sorted_labels, targets - half_width)
    ends = torch.searchsorted(sorted_labels, targets + half_width, right=True)
    return starts, ends


def _nearest(sorted_labels: Tensor, targets: Tensor) -> Tensor:
    positions = torch.searchsorted(sorted_labels, targets)
    below = sorted_labels[(positions - 1).clamp_min(0)]
    above = sorted_labels[positions.clamp_max(len(sorted_labels) - 1)]
    return torch.where((targets - below).abs() <= (above - targets).abs(), below, above)


def _kth_smallest_in_ranges(permutation: Tensor, starts: Tensor, ends: Tensor, ranks: Tensor) -> Tensor:
    """For every query b the ranks[b]-th smallest value (from 0) of permutation[starts[b]:ends[b]].

    A wavelet matrix: values are split stably by one bit after the other, from the highest; counting the zero bits
    before both ends of a range tells where the range goes and whether the wanted value has that bit. O((N + B) log N),
    where sorting every window would cost the sum of the window sizes.
    """
    results = torch.zeros_like(ranks)
    for bit in reversed(range((len(permutation) - 1).bit_length())):
        ones = (permutation >> bit) & 1  # [N]
        zeros_before = torch.cat([ones.new_zeros(1), (1 - ones).cumsum(dim=0)])  # [N + 1]
        num_zeros = zeros_before[-1]
        start_zeros, end_zeros = zeros_before[starts], zeros_before[ends]
        in_ones = ranks >= end_zeros - start_zeros  # [B]
        results = results | (in_ones.long() << bit)
        ranks = torch.where(in_ones, ranks - (end_zeros - start_zeros), ranks)
        starts = torch.where(in_ones, num_zeros + starts - start_zeros, start_zeros)
        ends = torch.where(in_ones, num_zeros + ends - end_zeros, end_zeros)

        positions = torch.arange(len(permutation), device=permutation.device)
        destinations = torch.where(ones.bool(), num_zeros + positions - zeros_before[:-1], zeros_before[:-1])
        permutation = torch.empty_like(permutation).scatter_(0, destinations, permutation)
    return results


def _floating_dtype(labels: Tensor) -> torch.dtype:
    return labels.dtype if labels.is_floating_point() else torch.float32


def _check_range(label_min: float, label_max: float) -> None:
    if not label_max > label_min:
        raise ValueError(f"label_max ({label_max}) must be above label_min ({label_min})")
