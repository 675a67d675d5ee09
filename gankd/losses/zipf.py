"""Zipf's label smoothing: the pixels of the last feature map vote for classes, the ranks of the votes are a target.

Liang, Li, Bing, Zhao, Tang, Lin, Fan, "Efficient One Pass Self-distillation with Zipf's Label Smoothing", ECCV 2022,
arXiv 2207.12980
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_shape
from .precision import full_precision
from .smoothing import check_class_ids

VOTING_ELEMENTS = 2**24  # entries of the largest temporary in class_votes: 64 MB in float32


@torch.no_grad()
def class_votes(
    *,
    feature_map: Tensor,  # [N, C, H, W], before global average pooling
    weight: Tensor,  # [K, C], of the linear classifier
    bias: Tensor | None = None,  # [K]
    upsample_scale: int = 1,  # bilinear, half-pixel centres; the paper doubles the 4x4 maps of CIFAR networks
) -> Tensor:
    """How many pixels of each sample the classifier puts into each class.

    v_nk = #{ pixels i: argmax_j (W f_ni + b)_j = k }

    The batch goes in parts, so that many classes do not make a large [N, K, H, W]. No gradient. Returns float32 counts
    [N, K]; each row sums to the number of pixels.
    """
    num_samples, _, height, width = feature_map.shape
    num_classes, channels = weight.shape
    if feature_map.shape[1] != channels:
        raise ValueError(
            f"the feature map has {feature_map.shape[1]} channels and the classifier takes {channels}: "
            "tap the map that is pooled for this classifier"
        )
    elements = height * width * upsample_scale**2 * max(num_classes, channels)
    parts = feature_map.split(max(1, VOTING_ELEMENTS // elements))
    winners = torch.cat([_pixel_classes(part, weight, bias, upsample_scale) for part in parts])  # [N, pixels]
    votes = torch.zeros(num_samples, num_classes, dtype=torch.float32, device=feature_map.device)
    return votes.scatter_add_(1, winners, torch.ones_like(winners, dtype=torch.float32))


def zipf_targets(
    *,
    scores: Tensor,  # [N, K], votes or logits, detached
    labels: Tensor,  # [N], class ids
    power: float = 1.0,
    distribution: str = "zipf",  # "zipf" or "unbiased"
    left_bound: float = 0.001,  # where and
    right_bound: float = 1.0,  # how far 1 / x^power is integrated; "unbiased" only
) -> Tensor:
    """A power law of the classes' ranks, over the classes other than the label.

    r_k = 1 + #{ j : scores_j > scores_k } over all K classes: ties share the smallest rank, and the label takes one up.
      zipf      q_k ~ r_k^-power
      unbiased  q_k ~ the integral of x^-power over the ranks r_k..R_k of k's ties, shared equally among them; rank r
                spans [left + (r - 1) d, left + r d], d = (right - left) / K
    q_y = 0, and the rest is normalised. With "zipf" the classes without a vote, tied at one rank, take most of the
    target (90 % when 6 of 100 classes have votes); with "unbiased" less (62 %). Returns [N, K]; the rows sum to 1.
    Raises ValueError for fewer than 3 classes, an unknown distribution or bounds that are not 0 < left < right.
    """
    log_targets, others = _log_zipf_targets(scores, labels, power, distribution, left_bound, right_bound)
    targets = torch.zeros(scores.shape, dtype=log_targets.dtype, device=scores.device)
    return targets.scatter(1, others, log_targets.exp())


def zipf_loss(
    *,
    student_logits: Tensor,  # [N, K]
    labels: Tensor,  # [N], class ids
    scores: Tensor,  # [N, K], votes or logits, detached
    power: float = 1.0,
    only_correct: bool = False,  # the mean over the samples whose largest logit is the label's, 0 when there are none
    distribution: str = "zipf",  # "zipf" or "unbiased", see zipf_targets
    left_bound: float = 0.001,
    right_bound: float = 1.0,
) -> Tensor:
    """The student's distribution over the wrong classes follows the power law of their ranks.

    L = 1 / N * sum_n KL( q_n || softmax of the K - 1 logits other than the label's ),  q = zipf_targets

    The label's logit gets no gradient; the cross-entropy beside this loss trains it. Returns a scalar.
    Raises ValueError when the shapes differ, and what zipf_targets raises.
    """
    check_same_shape(student_logits, scores, "logits and scores")
    log_targets, others = _log_zipf_targets(scores, labels, power, distribution, left_bound, right_bound)
    log_student = F.log_softmax(full_precision(student_logits).gather(1, others), dim=1)  # [N, K - 1]
    losses = F.kl_div(log_student, log_targets, reduction="none", log_target=True).sum(dim=1)  # [N]
    if not only_correct:
        return losses.mean()
    correct = student_logits.argmax(dim=1) == labels
    return torch.where(correct, losses, 0).sum() / correct.sum().clamp(min=1)


def _pixel_classes(feature_map: Tensor, weight: Tensor, bias: Tensor | None, upsample_scale: int) -> Tensor:
    with torch.autocast(feature_map.device.type, enabled=False):
        pixels = full_precision(feature_map)
        if upsample_scale != 1:
            pixels = F.interpolate(pixels, scale_factor=upsample_scale, mode="bilinear", align_corners=False)
        logits = full_precision(weight) @ pixels.flatten(2)  # [N, K, pixels]
        if bias is not None:
            logits += full_precision(bias)[:, None]
        return logits.argmax(dim=1)  # [N, pixels]


def _log_zipf_targets(
    scores: Tensor, labels: Tensor, power: float, distribution: str, left_bound: float, right_bound: float
) -> tuple[Tensor, Tensor]:
    """log q of the other classes, and which classes they are: both [N, K - 1]. Logarithms survive any power."""
    check_class_ids(scores, labels)
    num_classes = scores.shape[1]
    if num_classes == 1:
        raise ValueError("Zipf label smoothing ranks classes; this task has a scalar target")
    if num_classes == 2:
        raise ValueError("Zipf label smoothing ranks the wrong classes, of 2 classes only 1 is wrong: use 3 or more")
    scores = full_precision(scores.detach()).contiguous()
    ascending = scores.sort(dim=1).values
    first_rank = num_classes + 1 - torch.searchsorted(ascending, scores, right=True)
    if distribution == "zipf":
        log_weights = -power * first_rank.to(scores.dtype).log()
    elif distribution == "unbiased":
        if not 0 < left_bound < right_bound:
            raise ValueError(f"bounds {left_bound} and {right_bound} of the unbiased law must satisfy 0 < left < right")
        last_rank = num_classes - torch.searchsorted(ascending, scores)
        ties = (last_rank - first_rank + 1).to(scores.dtype)
        step = (right_bound - left_bound) / num_classes
        start = left_bound + (first_rank - 1).to(scores.dtype) * step
        log_ratio = torch.log1p(ties * step / start)  # of the end of the ties' interval to its start
        log_weights = _log_power_integral(start, log_ratio, power) - ties.log()
    else:
        raise ValueError(f"unknown distribution {distribution!r}: use 'zipf' or 'unbiased'")
    classes = torch.arange(num_classes - 1, device=labels.device)
    others = classes + (classes >= labels[:, None])
    return F.log_softmax(log_weights.gather(1, others), dim=1), others


def _log_power_integral(start: Tensor, log_ratio: Tensor, power: float) -> Tensor:
    """log of the integral of x^-power from start to start * exp(log_ratio)."""
    if power == 1:
        return log_ratio.log()
    return (1 - power) * start.log() + (torch.expm1((1 - power) * log_ratio) / (1 - power)).log()
