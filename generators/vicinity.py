"""Vicinities of a continuous label: which real images, and which fake labels, may stand in for a target label.

Ding et al., "CcGAN: Continuous Conditional Generative Adversarial Networks for Image Generation", ICLR 2021
(arXiv 2011.07466). Labels are normalised to [0, 1]. A target label is a training label plus noise of width sigma; an
image helps at target t when its own label lies in [t - w, t + w]:

    hard vicinity   w = kappa
    soft vicinity   w = sqrt(-ln(weight_threshold) / kappa), weight exp(-kappa (y - t)^2) >= weight_threshold

The arithmetic runs in float64: windows of dense label sets are narrower than float32 resolves safely.
"""

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


class LabelIndex:
    """The training labels [N], normalised to [0, 1], sorted and indexed once for every batch that is drawn from them.

    A wavelet matrix finds the k-th smallest place in any range of the sorted labels: places are split stably by one bit
    after the other, from the highest; counting the zero bits before both ends of a range tells where the range goes and
    whether the wanted place has that bit. O(N log N) once and O(log N) a query, where sorting every window would cost
    the sum of the window sizes.
    Raises ValueError: no labels, or some outside [0, 1].
    """

    def __init__(self, train_labels: Tensor):
        if train_labels.numel() == 0:
            raise ValueError("sample_vicinity needs at least one training label")
        self.labels, places = train_labels.double().sort()  # [N]
        if self.labels[0] < -1e-6 or self.labels[-1] > 1 + 1e-6:  # float32 normalisation may miss 1 by a rounding
            raise ValueError(
                f"train_labels span [{self.labels[0].item():g}, {self.labels[-1].item():g}]; "
                "normalise them to [0, 1] with normalize_labels"
            )
        self.zeros_before: list[tuple[int, Tensor]] = []
        """By bit, from the highest: in how many places before each [N + 1] it is 0, in the order of that bit's turn."""
        for bit in reversed(range((len(places) - 1).bit_length())):
            ones = (places >> bit) & 1  # [N]
            self.zeros_before.append((bit, torch.cat([ones.new_zeros(1), (1 - ones).cumsum(dim=0)])))
            places = torch.cat([places[ones == 0], places[ones == 1]])

    def windows(self, targets: Tensor, half_width: float) -> tuple[Tensor, Tensor]:
        """Half-open ranges [start, end) of the sorted labels inside [target - half_width, target + half_width]."""
        starts = torch.searchsorted(self.labels, targets - half_width)
        ends = torch.searchsorted(self.labels, targets + half_width, right=True)
        return starts, ends

    def nearest(self, targets: Tensor) -> Tensor:
        """The label nearest to each target [B]."""
        positions = torch.searchsorted(self.labels, targets)
        below = self.labels[(positions - 1).clamp_min(0)]
        above = self.labels[positions.clamp_max(len(self.labels) - 1)]
        return torch.where((targets - below).abs() <= (above - targets).abs(), below, above)

    def kth_place(self, starts: Tensor, ends: Tensor, ranks: Tensor) -> Tensor:
        """For every range [B] of the sorted labels the ranks[b]-th smallest (from 0) of their places in train_labels."""
        places = torch.zeros_like(ranks)
        for bit, zeros_before in self.zeros_before:
            num_zeros = zeros_before[-1]
            start_zeros, end_zeros = zeros_before[starts], zeros_before[ends]
            in_ones = ranks >= end_zeros - start_zeros  # [B]
            places = places | (in_ones.long() << bit)
            ranks = torch.where(in_ones, ranks - (end_zeros - start_zeros), ranks)
            starts = torch.where(in_ones, num_zeros + starts - start_zeros, start_zeros)
            ends = torch.where(in_ones, num_zeros + ends - end_zeros, end_zeros)
        return places


def sample_vicinity(
    *,
    train_labels: Tensor | LabelIndex,  # [N]: labels of the real images, normalised to [0, 1], or their index
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
    centres. Costs O(B R log N) whatever the windows hold, and O(N log N) before for labels without their index.
    Raises ValueError for an unknown vicinity, kappa <= 0, a threshold outside (0, 1), no training labels or labels
    outside [0, 1].
    Source: Ding et al., ICLR 2021, training algorithms of HVDL and SVDL.
    """
    half_width = _half_width(kappa, vicinity, weight_threshold)
    index = train_labels if isinstance(train_labels, LabelIndex) else LabelIndex(train_labels)

    tries = centres.double()[:, None] + sigma * noise.double()  # [B, R]
    starts, ends = index.windows(tries, half_width)
    occupied = ends > starts  # [B, R]
    first = occupied.int().argmax(dim=1, keepdim=True)  # argmax returns the first of equal values
    nearest = index.nearest(tries[:, -1].contiguous())
    targets = torch.where(occupied.any(dim=1), tries.gather(1, first).squeeze(1), nearest)  # [B]

    starts, ends = index.windows(targets, half_width)
    counts = ends - starts
    real_indices = index.kth_place(starts, ends, (pick.double() * counts).long())

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


def _floating_dtype(labels: Tensor) -> torch.dtype:
    return labels.dtype if labels.is_floating_point() else torch.float32


def _check_range(label_min: float, label_max: float) -> None:
    if not label_max > label_min:
        raise ValueError(f"label_max ({label_max}) must be above label_min ({label_min})")
