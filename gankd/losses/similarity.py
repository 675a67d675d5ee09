"""Losses on the similarities inside a batch.

similarity_preserving_loss: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_preserving_loss(
    *,
    student_feature: Tensor,  # [N, ...]
    teacher_feature: Tensor,  # [N, ...], detached; the trailing shape may differ from the student's
) -> Tensor:
    """Pairs of samples that excite the teacher alike should excite the student alike.

    Q = feature as [N, D];  G = Q Q^T;  rows of G divided by max(|row|, 1e-12);  L = |G_t - G_s|_F^2 / N^2

    The value shrinks like 1/N: the paper's weight 3000 belongs to N = 64. A batch of one sample costs 0. In float16 the
    products of long rows overflow, so G is taken in float32 outside autocast. Returns a scalar.
    Raises ValueError when the batches differ in size.
    """
    if len(student_feature) != len(teacher_feature):
        raise ValueError(
            f"student and teacher features come from different batches: {len(student_feature)} "
            f"and {len(teacher_feature)} samples"
        )
    with torch.autocast(student_feature.device.type, enabled=False):
        student_similarity = _row_normalised_gram(student_feature)
        teacher_similarity = _row_normalised_gram(teacher_feature.detach())
        return (teacher_similarity - student_similarity).square().mean()  # over N * N entries


def _row_normalised_gram(feature: Tensor) -> Tensor:
    flat = _full_precision(feature).flatten(1)  # [N, D]
    return F.normalize(flat @ flat.T, dim=1, eps=1e-12)  # [N, N]


def _full_precision(tensor: Tensor) -> Tensor:
    """float32, or float64 if it already is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
