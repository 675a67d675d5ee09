"""Losses that regress a teacher's features, up to their length.

simreg_loss, multi_teacher_simreg_loss: Navaneet et al., "SimReg: Regression as a Simple Yet Effective Tool for
Self-supervised Knowledge Distillation", BMVC 2021, arXiv 2201.05131
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import shapes
from .precision import full_precision


def simreg_loss(
    *,
    student_feature: Tensor,  # [N, D], what the student's head makes of its feature
    teacher_feature: Tensor,  # [N, D], detached
) -> Tensor:
    """The student's head points where the teacher's feature points.

    L = 1/N sum_n |s_n/|s_n| - t_n/|t_n||^2 = 1/N sum_n (2 - 2 cos(s_n, t_n)), in [0, 4]; lengths at least 1e-12

    Computed from the difference, which is exact near 0, where 2 - 2 cos has lost its digits. A head that answers zero
    gets a gradient of the order of 1e12: clip gradients.
    """
    if student_feature.shape != teacher_feature.shape or student_feature.ndim != 2:
        found = shapes(student_feature, teacher_feature)
        raise ValueError(
            f"features must share a shape [N, D], not {found}; end the student's head in the teacher's width"
        )
    student = F.normalize(full_precision(student_feature), dim=1, eps=1e-12)
    teacher = F.normalize(full_precision(teacher_feature.detach()), dim=1, eps=1e-12)
    return (student - teacher).square().sum(dim=1).mean()


def multi_teacher_simreg_loss(
    *,
    student_features: Sequence[Tensor],  # K tensors [N, D_k], one head a teacher
    teacher_features: Sequence[Tensor],  # K tensors [N, D_k], detached
    weights: Sequence[float] | None = None,  # K numbers; None: all 1
) -> tuple[Tensor, Tensor]:
    """Several teachers at once, each regressed by a head of its own on the same student.

    L = sum_k w_k L_k, with L_k as in `simreg_loss`

    Returns (the total, a scalar; the unweighted terms L_k, [K]).
    Raises ValueError for no teacher, lists that differ in length, or shapes that differ within a pair.
    """
    if not student_features or len(student_features) != len(teacher_features):
        raise ValueError(
            f"{len(student_features)} student heads regress {len(teacher_features)} teachers; give every teacher a head"
        )
    if weights is not None and len(weights) != len(teacher_features):
        raise ValueError(f"{len(weights)} weights for {len(teacher_features)} teachers; give one for each")
    pairs = zip(student_features, teacher_features, strict=True)
    terms = torch.stack([simreg_loss(student_feature=student, teacher_feature=teacher) for student, teacher in pairs])
    total = terms.sum() if weights is None else (terms.new_tensor(weights) * terms).sum()
    return total, terms
