"""Losses on feature maps: what a stage sees, where it looks, how its channels go together.

hint_loss: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550
attention_transfer_loss: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928
nst_loss: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219, 2017
fsp_loss: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017
vid_loss: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835
factor_transfer_loss: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
    NeurIPS 2018, arXiv 1802.04977

Where two maps differ in size, both are average-pooled to the smaller height and the smaller width ("matched" below).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_shape, shapes
from .precision import full_precision


def hint_loss(
    *,
    student_feature: Tensor,  # any shape: the output of a regressor on the student's feature
    teacher_feature: Tensor,  # the same shape, detached
) -> Tensor:
    """The student's feature, after a regressor, equals the teacher's.

    L = mean (s - t)^2 over every entry
    """
    check_same_feature(student_feature, teacher_feature)
    return (full_precision(student_feature) - full_precision(teacher_feature.detach())).square().mean()


def attention_transfer_loss(
    *,
    student_features: Sequence[Tensor],  # one [N, C_i, H_i, W_i] a stage
    teacher_features: Sequence[Tensor],  # as many, detached; other channels and sizes are fine
    p: int = 2,  # 4 stresses the strongest activations more; an odd power keeps their sign
) -> Tensor:
    """The student looks where the teacher looks.

    per stage, after matching:  Q = flatten(mean_c f^p) / max(|.|, 1e-12);  mean (Q_s - Q_t)^2 over N * H * W
    L = sum over the stages

    Maps have unit norm, so that the value shrinks with their size: hence the paper's weight of 1000.
    """
    pairs = [matched(*pair) for pair in map_pairs(student_features, teacher_features)]
    return torch.stack([(_attention(s, p) - _attention(t, p)).square().mean() for s, t in pairs]).sum()


def nst_loss(
    *,
    student_features: Sequence[Tensor],  # one [N, C_i, H_i, W_i] a stage
    teacher_features: Sequence[Tensor],  # as many, detached; other channels and sizes are fine
) -> Tensor:
    """Channels of the student select positions as the teacher's do: the squared-polynomial-kernel MMD between them.

    per stage, after matching:  r_c = flatten(f_c) / max(|.|, 1e-12);  k(a, b) = (r_a . r_b)^2
    mean k(t, t) + mean k(s, s) - 2 mean k(s, t), over samples and pairs of channels;  L = sum over the stages

    Through channel Gram matrices: the memory is N * C_s * C_t, without the factor H * W of the outer form.
    """
    losses = []
    for student, teacher in map_pairs(student_features, teacher_features):
        student, teacher = matched(student, teacher)
        student = F.normalize(student.flatten(2), dim=2)  # [N, C_s, H * W]
        teacher = F.normalize(teacher.flatten(2), dim=2)  # [N, C_t, H * W]
        own = _mean_kernel(teacher, teacher) + _mean_kernel(student, student)
        losses.append(own - 2 * _mean_kernel(student, teacher))
    return torch.stack(losses).sum()


def fsp_loss(
    *,
    student_features: Sequence[Tensor],  # [N, C_i, H_i, W_i] from shallow to deep, at least two
    teacher_features: Sequence[Tensor],  # as many, with the student's channels at each tap, detached
) -> Tensor:
    """The flow from one layer to the next is the teacher's: matrices between the channels of consecutive taps.

    per consecutive pair a, b, matched to each other:  G[c, d] = mean_hw a_c b_d;  mean (G_s - G_t)^2 over N * C_a * C_b
    L = sum over the pairs

    Returns a scalar. Raises ValueError for fewer than two taps, taps or batches that do not pair, different channels.
    """
    pairs = map_pairs(student_features, teacher_features)
    if len(pairs) < 2:
        raise ValueError("FSP describes the flow between consecutive taps and needs at least two feature maps")
    for tap, (student, teacher) in enumerate(pairs):
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"FSP needs equal channels, but feature map {tap} has {student.shape[1]} in the student and "
                f"{teacher.shape[1]} in the teacher; choose taps of the same width or put a 1x1 convolution between"
            )
    flows = [(_flow(s, next_s), _flow(t, next_t)) for (s, t), (next_s, next_t) in pairwise(pairs)]  # [N, C_a, C_b]
    return torch.stack([(student - teacher).square().mean() for student, teacher in flows]).sum()


def vid_loss(
    *,
    student_feature: Tensor,  # [N, C, H, W], the teacher's map as the student's regressor expects it
    teacher_feature: Tensor,  # the same shape, detached
    log_scale: Tensor,  # [C]; the channel's variance before the softplus
    eps: float = 1e-5,  # smallest variance
) -> Tensor:
    """The student's feature tells much about the teacher's: a Gaussian bound on their mutual information.

    L = mean ( (s - t)^2 / var + log var ) / 2 over every entry,  var_c = softplus(log_scale_c) + eps

    log_scale is a parameter to train with the regressor; log(exp(5 - eps) - 1) starts it at a variance of 5. With a
    variance below 1 the loss can be negative. Returns a scalar. Raises ValueError when the shapes differ.
    """
    check_same_feature(student_feature, teacher_feature)
    difference = full_precision(student_feature) - full_precision(teacher_feature.detach())
    variance = F.softplus(full_precision(log_scale)).view(-1, 1, 1) + eps  # [C, 1, 1]
    return (difference.square() / variance + variance.log()).mean() / 2


def factor_transfer_loss(
    *,
    student_factor: Tensor,  # [N, C, H, W], the translator's output
    teacher_factor: Tensor,  # [N, C', H', W'], the paraphraser's, detached
    p1: int = 2,  # power of the factor's entries; an odd power keeps their sign
    p2: int = 1,  # power of the difference; 1 means its size
) -> Tensor:
    """The student's factor is the teacher's paraphrase.

    after matching:  q = flatten(mean_c f^p1) / max(|.|, 1e-12);  L = mean |q_s - q_t| for p2 = 1, else mean (q_s - q_t)^p2
    """
    ((student, teacher),) = map_pairs([student_factor], [teacher_factor])
    student, teacher = matched(student, teacher)
    difference = _attention(student, p1) - _attention(teacher, p1)
    return (difference.abs() if p2 == 1 else difference.pow(p2)).mean()


def map_pairs(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(student, teacher) feature maps, stage by stage, in full precision and the teacher's without gradient.
    Raises ValueError when there are none, their numbers or batches differ or one is not [N, C, H, W]."""
    if len(student_features) != len(teacher_features) or len(student_features) == 0:
        found = f"the student gives {len(student_features)} feature maps and the teacher {len(teacher_features)}"
        raise ValueError(f"{found}; give one of each for every stage to compare")
    pairs = list(zip(student_features, teacher_features, strict=True))
    for student, teacher in pairs:
        if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
            found = shapes(student, teacher)
            raise ValueError(f"feature maps are [N, C, H, W] of one batch, not {found} of student and teacher")
    return [(full_precision(student), full_precision(teacher.detach())) for student, teacher in pairs]


def check_same_feature(student: Tensor, teacher: Tensor) -> None:
    way_out = "; put a regressor or connector between that gives the teacher's shape"
    check_same_shape(student, teacher, "student and teacher features", way_out)


def matched(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [N, C, H, W], average-pooled to the smaller height and the smaller width."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    first, second = (f if f.shape[2:] == size else F.adaptive_avg_pool2d(f, size) for f in (first, second))
    return first, second


def _attention(feature: Tensor, power: int) -> Tensor:
    return F.normalize(feature.pow(power).mean(dim=1).flatten(1), dim=1)  # [N, H * W], rows of norm 1


def _channel_products(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of channels [N, C, L] and [N, C', L]: [N, C, C']."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.transpose(1, 2)


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return _channel_products(first, second).square().mean()


def _flow(first: Tensor, second: Tensor) -> Tensor:
    first, second = matched(first, second)
    return _channel_products(first.flatten(2), second.flatten(2)) / first.shape[2:].numel()
