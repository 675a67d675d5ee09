"""Losses on feature maps taken before the activation function, where the sign still tells which neurons fire.

activation_boundary_loss: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons", AAAI 2019, arXiv 1811.03233
ofd_margin, ofd_loss: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866
hcl_loss: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import check_same_feature, map_pairs
from .precision import full_precision


def activation_boundary_loss(
    *,
    student_features: Sequence[Tensor],  # [N, C_i, H_i, W_i] from shallow to deep, before the ReLU, after a connector
    teacher_features: Sequence[Tensor],  # the same shapes, before the ReLU, detached
    margin: float = 1.0,  # how far beyond the boundary the student should be
) -> Tensor:
    """A neuron of the student fires where the teacher's does: a squared hinge on the sign, whatever the size.

    per stage i of n:  sum of max(m + s, 0)^2 where t <= 0 and max(m - s, 0)^2 where t > 0
    L = 3/1000 sum_i 2^(i - n + 1) stage_i / N, i = 0 .. n - 1: the deepest stage counts 1, each one before it half

    3/1000 is the original code's. Returns a scalar. Raises ValueError when the lists do not pair or shapes differ.
    """
    loss = 0.0
    pairs = map_pairs(student_features, teacher_features)
    for depth, (student, teacher) in enumerate(pairs, start=1 - len(pairs)):
        check_same_feature(student, teacher)
        shortfall = F.relu(torch.where(teacher > 0, margin - student, margin + student))
        loss = loss + 2.0**depth * shortfall.square().sum() / len(student)
    return loss * 3 / 1000


def ofd_margin(
    *,
    bn_weight: Tensor,  # [C] of the teacher's batch norm before the ReLU
    bn_bias: Tensor,  # [C]
) -> Tensor:
    """The mean of a channel of the teacher where it is negative, by its batch norm: the margin of OFD's partial ReLU.

    x ~ N(m, s^2), m = bias, s = |weight|:  E[x | x < 0] = m - s phi(m / s) / Phi(-m / s) where Phi(-m / s) > 0.001,
    else -3 s (the channel is hardly ever negative)

    A channel of weight 0 is constant: its margin is min(m, 0). Returns [C], without gradient.
    """
    mean = full_precision(bn_bias.detach())
    deviation = full_precision(bn_weight.detach()).abs()  # at 0, m / s is infinite or NaN and the formula still holds
    negative = torch.special.ndtr(-mean / deviation)  # Phi(-m / s), the share of negative values
    density = torch.exp(-(mean / deviation).square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(negative > 0.001, mean - deviation * density / negative, -3 * deviation)


def ofd_loss(
    *,
    student_feature: Tensor,  # [N, C, H, W] before the ReLU, after a connector
    teacher_feature: Tensor,  # [N, C, H', W'] before the ReLU, detached; pooled to the student's size
    margin: Tensor,  # [C] or [1, C, 1, 1], negative: ofd_margin of the teacher's batch norm
) -> Tensor:
    """Positive responses of the teacher are met exactly; for negative ones, to be low enough suffices.

    t' = max(t, margin);  L = 1/N sum_chw (s - t')^2, without the entries where t <= 0 and s <= t'

    One stage; the paper's weight of stage i of n, from shallow to deep, is 2^-(n - 1 - i) / 1000.
    """
    ((student, teacher),) = map_pairs([student_feature], [teacher_feature])
    channels = student.shape[1]
    if teacher.shape[1] != channels or margin.shape not in {(channels,), (1, channels, 1, 1)}:
        raise ValueError(
            f"the student's connector gives {channels} channels, the teacher has {teacher.shape[1]} and the margin "
            f"{list(margin.shape)}; all need the teacher's channels"
        )
    if teacher.shape[2:] != student.shape[2:]:
        teacher = F.adaptive_avg_pool2d(teacher, student.shape[2:])
    target = torch.maximum(teacher, full_precision(margin.detach()).view(-1, 1, 1))
    matters = (teacher > 0) | (student > target)
    return ((student - target).square() * matters).sum() / len(student)


def hcl_loss(
    *,
    student_features: Sequence[Tensor],  # one [N, C_i, H_i, W_i] a stage
    teacher_features: Sequence[Tensor],  # the same shapes, detached
) -> Tensor:
    """ReviewKD's hierarchical context loss: stages agree at full size and, coarser and coarser, on the average.

    per stage:  mean (s - t)^2, then the same after adaptive average pooling to 4 x 4, 2 x 2, 1 x 1, those below the
    map's height, with weights 1, 1/2, 1/4, 1/8 in this order, divided by the sum of the weights used
    L = sum over the stages

    A map narrower than a level keeps its width there.
    """
    total = 0.0
    for student, teacher in map_pairs(student_features, teacher_features):
        check_same_feature(student, teacher)
        height, width = student.shape[2:]
        difference = student - teacher  # pooling is linear: the difference of the averages is the average difference
        loss, weight, weights = difference.square().mean(), 1.0, 1.0
        for level in (4, 2, 1):
            if level < height:
                weight /= 2
                weights += weight
                pooled = F.adaptive_avg_pool2d(difference, (level, min(level, width)))
                loss = loss + weight * pooled.square().mean()
        total = total + loss / weights
    return total
