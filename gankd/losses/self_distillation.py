"""Losses of methods in which a network teaches itself: another view, branch, epoch or sample is its teacher.

cs_kd_loss: Yun, Park, Lee, Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020,
arXiv 2003.13964
ps_kd_loss: Kim, Ji, Yoon, Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
arXiv 2006.12000
bake_targets, bake_loss: Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet
Classification", arXiv 2104.13298, 2021
ddgsd_loss: Xu, Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019
byot_loss: Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv 1905.08094
dks_loss: Sun, Yao, Zhou, Zhao, "Deeply-supervised Knowledge Synergy", CVPR 2019
self_attention_loss: Hou, Ma, Liu, Loy, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation",
ICCV 2019, arXiv 1908.00821
frskd_loss: Ji, Shin, Hwang, Park, Moon, "Refine Myself by Teaching Myself", CVPR 2021, arXiv 2103.08273

KL(s, t) below is the divergence at the temperature T: t detached, a mean over samples, times T^2. Losses that return
(total, CE, rest) have their weights inside: total = CE + rest. The rests have functions of their own, which methods call:
another `task` puts its own divergence for KL, and z are its outputs.
"""

from collections.abc import Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_batch, check_same_shape, shapes
from .classes import CLASSES, Equations
from .features import attention_transfer_loss
from .precision import full_precision
from .smoothing import cross_entropy


def cs_kd_loss(
    *,
    student_logits: Tensor,  # [N, K]
    paired_logits: Tensor,  # [N, K], on another image of the same class each, detached
    labels: Tensor,  # [N], class ids
    temperature: float = 4.0,
    kd_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images of a class are predicted alike: CE(s, y) + kd_weight KL(s, paired). Returns (total, CE, rest), scalars."""
    ce = cross_entropy(student_logits, labels)
    rest = kd_weight * CLASSES.divergence(student_logits, paired_logits.detach(), temperature=temperature)
    return ce + rest, ce, rest


def ps_kd_loss(
    *,
    student_logits: Tensor,  # [N, K]
    labels: Tensor,  # [N], class ids
    previous_probabilities: Tensor,  # [N, K], of the same samples in the last epoch, detached
    alpha: float,  # in epoch e = 0, 1, .. of E: alpha_T (e + 1) / E, the paper's alpha_T = 0.8
    task: Equations = CLASSES,
) -> Tensor:
    """Cross-entropy to labels softened by the network's own predictions one epoch ago.

    q = (1 - alpha) one_hot(y) + alpha p_previous;  L = -1 / N * sum_n sum_k q_nk log softmax(s_n)_k. Returns a scalar.
    """
    label = task.soften(labels, student_logits.shape[-1])
    check_same_shape(label, previous_probabilities, "logits and previous probabilities")
    return task.soft_loss(student_logits, (1 - alpha) * label + alpha * full_precision(previous_probabilities.detach()))


@torch.no_grad()
def bake_targets(
    *,
    embeddings: Tensor,  # [N, D]
    logits: Tensor,  # [N, K]
    temperature: float = 4.0,
    omega: float = 0.5,  # share of what comes from the other samples, in [0, 1)
) -> Tensor:
    """Predictions spread over the batch along the similarity of the samples until nothing changes.

    A = softmax over the other samples of the cosine similarities (no temperature)
    Q = (1 - omega) (I - omega A)^-1 softmax(z / T), the limit of Q <- omega A Q + (1 - omega) softmax(z / T)

    No gradient. Returns [N, K] probabilities.
    Raises ValueError for a batch of one sample (it has no neighbour), other sizes or an omega outside [0, 1).
    """
    predictions = CLASSES.soft_labels(logits, temperature=temperature)
    return spread_over_batch(embeddings=embeddings, values=predictions, omega=omega)


@torch.no_grad()
def spread_over_batch(
    *,
    embeddings: Tensor,  # [N, D]
    values: Tensor,  # [N, K], of whatever kind
    omega: float = 0.5,  # share of what comes from the other samples, in [0, 1)
) -> Tensor:
    """Values spread over the batch as in `bake_targets`, which are scalar predictions where there are no classes.

    Q = (1 - omega) (I - omega A)^-1 values. No gradient. Returns [N, K]. Raises ValueError as `bake_targets`.
    """
    num_samples = len(values)
    check_same_batch(embeddings, values, "embeddings and predictions")
    if num_samples < 2:
        raise ValueError("BAKE ensembles the predictions of a batch: it needs at least 2 samples, and this batch has 1")
    if not 0 <= omega < 1:
        raise ValueError(f"omega is {omega}: the share of the other samples is in [0, 1)")
    with torch.autocast(values.device.type, enabled=False):
        directions = F.normalize(full_precision(embeddings).flatten(1), dim=1)
        identity = torch.eye(num_samples, dtype=directions.dtype, device=directions.device)
        similarity = (directions @ directions.T).masked_fill(identity.bool(), -torch.inf)
        system = identity - omega * similarity.softmax(dim=1)  # [N, N]
        # the rows of A sum to 1 and omega < 1: diagonally dominant, so no check, which would wait for the device
        return (1 - omega) * torch.linalg.solve_ex(system, full_precision(values).to(system.dtype)).result


def bake_loss(
    *,
    student_logits: Tensor,  # [N, K]
    soft_targets: Tensor,  # [N, K] probabilities at the same temperature, see bake_targets; detached
    temperature: float = 4.0,
) -> Tensor:
    """The softened predictions follow given probabilities: T^2 / N * sum_n KL( Q_n || softmax(s_n / T) ).

    Like kd_loss, but the targets are probabilities: a softmax over them would make them flat.
    """
    check_same_shape(student_logits, soft_targets, "logits and soft targets")
    return CLASSES.soft_divergence(student_logits, soft_targets.detach(), temperature=temperature)


def ddgsd_divergence(
    *,
    student_logits: Sequence[Tensor],  # of two views, each [N, K]
    embeddings: Sequence[Tensor],  # of two views, each [N, D]
    temperature: float = 4.0,
    mmd_weight: float = 5e-4,
    mmd: str = "vector",  # "vector", the paper's, or "scalar", of the mean over all entries, as some libraries have it
    task: Equations = CLASSES,
) -> Tensor:
    """KL(s_a, s_b) + KL(s_b, s_a) + mmd_weight |mean_n f_a - mean_n f_b|^2, gradients into both means. A scalar.
    Raises ValueError when there are not two views, their shapes differ or mmd is unknown."""
    if len(student_logits) != 2 or len(embeddings) != 2:
        raise ValueError(f"two views are needed, not {len(student_logits)} logits and {len(embeddings)} embeddings")
    check_same_shape(*embeddings, "embeddings of the two views")
    if mmd not in ("vector", "scalar"):
        raise ValueError(f"unknown mmd {mmd!r}: use 'vector' or 'scalar'")
    difference = full_precision(embeddings[0]) - full_precision(embeddings[1])
    gap = difference.mean(dim=0) if mmd == "vector" else difference.mean()
    return mutual_divergence(student_logits, temperature, task) + mmd_weight * gap.square().sum()


def ddgsd_loss(*, student_logits: Sequence[Tensor], labels: Tensor, **arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Two distortions of an image are predicted alike, and their features have the same mean.

    CE    (CE(s_a, y) + CE(s_b, y)) / 4, the mean over the 2 N predictions, halved
    rest  ddgsd_divergence, whose arguments are taken besides class ids [N]

    Returns (total, CE, rest), scalars.
    """
    rest = ddgsd_divergence(student_logits=student_logits, **arguments)
    ce = sum(cross_entropy(view, labels) for view in student_logits) / 4
    return ce + rest, ce, rest


def byot_divergence(
    *,
    logits: Sequence[Tensor],  # B heads, the deepest first, each [N, K]
    shallow_features: Sequence[Tensor],  # B - 1 maps in the order of logits[1:], each [N, C, H, W]
    deepest_feature: Tensor,  # [N, C, H, W], detached
    temperature: float = 4.0,
    feature_weight: float = 0.05,
    task: Equations = CLASSES,
) -> Tensor:
    """sum_{b>0} [ KL(z_b, z_0) + feature_weight mean (F_b - F_0)^2 ]. A scalar."""
    if not shallow_features or len(logits) != len(shallow_features) + 1:
        raise ValueError(
            f"one deepest head, then a shallow head for each of at least one map: {len(logits)} logits and "
            f"{len(shallow_features)} shallow features were given"
        )
    teacher, target, rest = logits[0].detach(), full_precision(deepest_feature.detach()), 0
    for head, feature in zip(logits[1:], shallow_features, strict=True):
        check_same_shape(feature, deepest_feature, "shallow and deepest features")
        rest = rest + task.divergence(head, teacher, temperature=temperature)
        rest = rest + feature_weight * (full_precision(feature) - target).square().mean()
    return rest


def byot_loss(*, logits: Sequence[Tensor], labels: Tensor, **arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The deepest head teaches the shallow ones: CE = sum_b CE(z_b, y), the deepest included; rest = byot_divergence, whose
    arguments are taken besides class ids [N]. Returns (total, CE, rest), scalars."""
    rest = byot_divergence(logits=logits, **arguments)
    ce = sum(cross_entropy(head, labels) for head in logits)
    return ce + rest, ce, rest


def dks_loss(
    *,
    logits: Sequence[Tensor],  # of at least two heads, each [N, K]
    labels: Tensor,  # [N], class ids
    temperature: float = 4.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every head learns from the labels and from every other head.

    CE = sum_i CE(z_i, y);  rest = sum over i != j of KL(z_i, z_j). Returns (total, CE, rest), scalars.
    Raises ValueError when there are fewer than two heads or the shapes differ.
    """
    rest = mutual_divergence(logits, temperature)
    ce = sum(cross_entropy(head, labels) for head in logits)
    return ce + rest, ce, rest


def self_attention_loss(
    *,
    student_feature: Tensor,  # [N, C, H, W], the shallower of two neighbouring stages
    teacher_feature: Tensor,  # [N, C', H', W'], the deeper one, detached
) -> Tensor:
    """A stage looks where the next deeper one looks.

    at(F) = softmax over the H W positions of mean_c F^2;  L = 1 / (N H W) * sum (at(F_s) - at(F_d upsampled))^2

    The deeper map is brought to H x W bilinearly (half-pixel centres) before it is squared, whatever its size. The
    softmax is over raw magnitudes: large activations collapse it to one position. Returns a scalar, unweighted (the
    paper sums over the pairs of stages).
    """
    if student_feature.ndim != 4 or teacher_feature.ndim != 4 or len(student_feature) != len(teacher_feature):
        found = shapes(student_feature, teacher_feature)
        raise ValueError(f"feature maps {found} must be [N, C, H, W] of the same N")
    with torch.autocast(student_feature.device.type, enabled=False):
        deeper = full_precision(teacher_feature.detach())
        deeper = F.interpolate(deeper, size=student_feature.shape[2:], mode="bilinear", align_corners=False)
        student_attention = _mean_square(student_feature).softmax(dim=1)
        return (student_attention - _mean_square(deeper).softmax(dim=1)).square().mean()


def frskd_divergence(
    *,
    student_logits: Tensor,  # [N, K]
    self_teacher_logits: Tensor,  # [N, K], of the network on top of the student's maps; detached
    student_features: Sequence[Tensor],  # L maps [N, C_l, H_l, W_l]
    self_teacher_features: Sequence[Tensor],  # L maps [N, C'_l, H_l, W_l], detached
    temperature: float = 4.0,
    kd_weight: float = 2.0,
    attention_weight: float = 100.0,
    task: Equations = CLASSES,
) -> Tensor:
    """kd_weight KL(student, self-teacher) + attention_weight sum_l 1 / (N H_l W_l) * sum (at(F_l) - at(F'_l))^2

    at(F) = mean_c F^2 over its length as a vector of H W entries.
    """
    if len(student_features) != len(self_teacher_features):
        raise ValueError(
            f"the maps do not pair up: {len(student_features)} of the student and "
            f"{len(self_teacher_features)} of the self-teacher"
        )
    for mine, refined in zip(student_features, self_teacher_features, strict=True):
        check_same_shape(mine[:, 0], refined[:, 0], "one channel of the student's and the self-teacher's map")
    attention = attention_transfer_loss(student_features=student_features, teacher_features=self_teacher_features)
    kd = task.divergence(student_logits, self_teacher_logits.detach(), temperature=temperature)
    return kd_weight * kd + attention_weight * attention


def frskd_loss(
    *, student_logits: Tensor, self_teacher_logits: Tensor, labels: Tensor, **arguments
) -> tuple[Tensor, Tensor, Tensor]:
    """A self-teacher that refines the student's maps returns what it learned, as predictions and as attention.

    CE    CE(student, y) + CE(self-teacher, y)
    rest  frskd_divergence, whose arguments are taken besides class ids [N]

    The self-teacher learns from its CE alone, which also reaches the student's maps below it.
    Returns (total, CE, rest), scalars.
    """
    rest = frskd_divergence(student_logits=student_logits, self_teacher_logits=self_teacher_logits, **arguments)
    ce = cross_entropy(student_logits, labels) + cross_entropy(self_teacher_logits, labels)
    return ce + rest, ce, rest


def mutual_divergence(outputs: Sequence[Tensor], temperature: float, task: Equations = CLASSES) -> Tensor:
    """The sum of KL over all ordered pairs of heads [N, K]. Raises ValueError when there are fewer than two."""
    if len(outputs) < 2:
        raise ValueError(f"heads that teach each other are at least 2: {len(outputs)} given")
    pairs = permutations(outputs, 2)
    return sum(task.divergence(student, teacher.detach(), temperature=temperature) for student, teacher in pairs)


def _mean_square(feature: Tensor) -> Tensor:
    # by the norm, which makes no squared map: a fifth of the time, forward and backward
    norms = torch.linalg.vector_norm(full_precision(feature), dim=1).flatten(1)  # [N, H W]
    return norms.square() / feature.shape[1]
