"""Losses on the similarities inside a batch.

similarity_preserving_loss: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682
rkd_loss, rkd_distance_loss, rkd_angle_loss: Park et al., "Relational Knowledge Distillation", CVPR 2019,
    arXiv 1904.05068
pkt_loss: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    arXiv 1803.10837
correlation_congruence_loss: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
    arXiv 1904.01802
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_batch, check_same_shape
from .precision import full_precision

FEATURES = "student and teacher features"


def similarity_preserving_loss(
    *,
    student_feature: Tensor,  # [N, ...]
    teacher_feature: Tensor,  # [N, ...], detached; the trailing shape may differ from the student's
) -> Tensor:
    """Pairs of samples that excite the teacher alike should excite the student alike.

    Q = feature as [N, D];  G = Q Q^T;  rows of G divided by max(|row|, 1e-12);  L = |G_t - G_s|_F^2 / N^2

    The value shrinks like 1/N: the paper's weight 3000 belongs to N = 64. A batch of one sample costs 0. In float16 the
    products of long rows overflow, so G is taken in float32 outside autocast.
    """
    check_same_batch(student_feature, teacher_feature, FEATURES)
    with torch.autocast(student_feature.device.type, enabled=False):
        student_similarity = _row_normalised_gram(student_feature)
        teacher_similarity = _row_normalised_gram(teacher_feature.detach())
        return (teacher_similarity - student_similarity).square().mean()  # over N * N entries


def rkd_loss(
    *,
    student_feature: Tensor,  # [N, D]
    teacher_feature: Tensor,  # [N, D'], detached
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Tensor:
    """Relational knowledge distillation: distances and angles between samples follow the teacher's.

    L = distance_weight rkd_distance_loss + angle_weight rkd_angle_loss
    """
    distance = rkd_distance_loss(student_feature=student_feature, teacher_feature=teacher_feature)
    angle = rkd_angle_loss(student_feature=student_feature, teacher_feature=teacher_feature)
    return distance_weight * distance + angle_weight * angle


def rkd_distance_loss(
    *,
    student_feature: Tensor,  # [N, D]
    teacher_feature: Tensor,  # [N, D'], detached
) -> Tensor:
    """Two samples are as far apart for the student as for the teacher, in units of the batch's mean distance.

    D_ij = sqrt(max(|e_i - e_j|^2, 1e-12)), D_ii = 0;  D divided by the mean of its positive entries
    L = smooth-L1 of D_s - D_t (quadratic below 1), mean over all N * N entries

    Distances come from differences: the expansion |e_i|^2 + |e_j|^2 - 2 e_i . e_j would cancel. Coincident samples
    count into the mean. A batch of one sample costs 0.
    """
    check_same_batch(student_feature, teacher_feature, FEATURES)
    return F.smooth_l1_loss(_relative_distances(student_feature), _relative_distances(teacher_feature.detach()))


def rkd_angle_loss(
    *,
    student_feature: Tensor,  # [N, D]
    teacher_feature: Tensor,  # [N, D'], detached
) -> Tensor:
    """Two samples seen from a third span the angle that they span for the teacher.

    u_ij = (e_j - e_i) / |e_j - e_i|, u_ii = 0;  A_ijk = u_ij . u_ik
    L = smooth-L1 of A_s - A_t (quadratic below 1), mean over all N^3 entries

    Coincident samples have no direction: u = 0, without gradient. The memory grows like N^3, 0.5 GB a copy in float32 at
    N = 512. A batch of one sample costs 0. Returns a scalar. Raises ValueError when the batches differ in size.
    """
    check_same_batch(student_feature, teacher_feature, FEATURES)
    return F.smooth_l1_loss(_angle_cosines(student_feature), _angle_cosines(teacher_feature.detach()))


def pkt_loss(
    *,
    student_feature: Tensor,  # [N, D]
    teacher_feature: Tensor,  # [N, D'], detached
    eps: float = 1e-7,
) -> Tensor:
    """Probabilistic knowledge transfer: the student finds the same neighbours as probable as the teacher does.

    f = feature / (|feature| + eps);  S = (f f^T + 1) / 2;  P = S / its row sums, diagonal included
    L = mean P_t log((P_t + eps) / (P_s + eps)) over N * N entries

    The value shrinks like 1/N: hence the weight of 30000 at N = 64.
    """
    check_same_batch(student_feature, teacher_feature, FEATURES)
    student = _neighbour_probabilities(student_feature, eps)
    teacher = _neighbour_probabilities(teacher_feature.detach(), eps)
    return (teacher * ((teacher + eps).log() - (student + eps).log())).mean()


def correlation_congruence_loss(
    *,
    student_embedding: Tensor,  # [N, D], a trained linear map of the student's feature
    teacher_embedding: Tensor,  # [N, D], the same of the teacher's; carries gradient too, detach it to hold it fixed
    form: str = "neighbours",  # "neighbours": the original code's; "kernel": the paper's, for widths that may differ
    gamma: float = 0.4,  # kernel only: 1 / (2 sigma^2) of the Gaussian
    order: int = 2,  # kernel only: last term of its Taylor series
) -> Tensor:
    """Correlations between the samples of a batch are the same for student and teacher.

    neighbours  d = |e_s - e_t|;  L = mean_i sum_k d_ik d_(i+1)k over i = 1 .. N - 1
    kernel      C_ij = sum_p exp(-2 gamma) (2 gamma)^p / p! (e_i . e_j)^p, p = 0 .. order, of embeddings of norm 1;
                L = mean (C_s - C_t)^2 over N * N entries

    The code that the results with weight 0.02 come from uses neighbours, which is not the paper's congruence: it
    multiplies the errors of samples that follow each other, so that it depends on the order of the batch, and it is 0
    when every second sample is met. The kernel form is the paper's expansion of exp(-gamma |e_i - e_j|^2). In both,
    embeddings that are all alike are a free minimum as long as both sides train. One sample costs 0 in the first form.
    Returns a scalar. Raises ValueError when the batches (for neighbours: the shapes) differ, or the form is unknown.
    """
    check_same_batch(student_embedding, teacher_embedding, "student and teacher embeddings")
    student, teacher = full_precision(student_embedding), full_precision(teacher_embedding)
    if form == "neighbours":
        check_same_shape(student, teacher, "student and teacher embeddings", "; map both to the same width")
        distances = (student - teacher).abs()
        return (distances[:-1] * distances[1:]).sum() / max(len(distances) - 1, 1)
    if form == "kernel":
        with torch.autocast(student.device.type, enabled=False):
            difference = _gaussian_series(student, gamma, order) - _gaussian_series(teacher, gamma, order)
        return difference.square().mean()
    raise ValueError(f"unknown form {form!r} of correlation congruence: use 'neighbours' or 'kernel'")


def _row_normalised_gram(feature: Tensor) -> Tensor:
    flat = full_precision(feature).flatten(1)  # [N, D]
    return F.normalize(flat @ flat.T, dim=1, eps=1e-12)  # [N, N]


def _relative_distances(feature: Tensor) -> Tensor:
    flat = full_precision(feature).flatten(1)  # [N, D]
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)
    distances = distances.masked_fill(torch.eye(len(flat), dtype=torch.bool, device=flat.device), 0)
    num_pairs = max(len(flat) * (len(flat) - 1), 1)  # every entry off the diagonal is positive
    return distances / (distances.sum() / num_pairs).clamp(min=1e-12)  # the mean is 0 for one sample


def _angle_cosines(feature: Tensor) -> Tensor:
    flat = full_precision(feature).flatten(1)  # [N, D]
    differences = flat[None] - flat[:, None]  # [N, N, D], entry [i, j] leads from i to j
    coincident = (differences == 0).all(dim=2, keepdim=True)
    directions = F.normalize(differences, dim=2).masked_fill(coincident, 0)  # without it, a gradient of 1 / 1e-12
    with torch.autocast(flat.device.type, enabled=False):
        return directions @ directions.transpose(1, 2)  # [N, N, N]


def _neighbour_probabilities(feature: Tensor, eps: float) -> Tensor:
    flat = full_precision(feature).flatten(1)  # [N, D]
    unit = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + eps)
    with torch.autocast(flat.device.type, enabled=False):
        similarities = ((unit @ unit.T + 1) / 2).clamp(min=0)  # rounding takes opposite samples below 0
    return similarities / similarities.sum(dim=1, keepdim=True)


def _gaussian_series(embedding: Tensor, gamma: float, order: int) -> Tensor:
    unit = F.normalize(embedding.flatten(1), dim=1)
    cosines = unit @ unit.T  # [N, N]
    return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))
