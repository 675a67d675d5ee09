"""Losses on joint distributions over classes and rotations.

rotation_batch, hsakd_teacher_loss, hsakd_student_loss, joint_to_class_logits: Yang, An, Cai, Xu, "Hierarchical
Self-supervised Augmented Knowledge Distillation", IJCAI 2021, arXiv 2107.13715
hsakd_mutual_loss: the same authors, "Knowledge Distillation Using Hierarchical Self-Supervision Augmented Distribution",
TNNLS 2022, arXiv 2109.03075

Shapes: N images, K classes, M transforms an image (four rotations; the losses read M off the shapes, so any set of
label-preserving transforms with the identity first will do), and one auxiliary classifier a stage over the M K joint
labels. Row M n + k of a batch is image n under transform k, and its joint label is M y_n + k.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .logits import kd_loss
from .precision import full_precision


def rotation_batch(
    *,
    images: Tensor,  # [N, C, S, S]
    labels: Tensor,  # [N] class ids
) -> tuple[Tensor, Tensor]:  # [4N, C, S, S], [4N]
    """Every image turned by 0, 90, 180 and 270 degrees counter-clockwise, and the joint labels 4 y + k.
    Raises ValueError for images that are not square."""
    if images.shape[-2] != images.shape[-1]:
        raise ValueError(f"rotations by 90 degrees need square images, not {images.shape[-2]} x {images.shape[-1]}")
    rotated = torch.stack([images.rot90(turns, (2, 3)) for turns in range(4)], dim=1)  # [N, 4, C, S, S]
    return rotated.flatten(0, 1), _joint_labels(labels, 4)


def hsakd_teacher_loss(
    *,
    logits: Tensor,  # [M N, K]
    auxiliary_logits: Sequence[Tensor],  # [M N, M K] a stage
    labels: Tensor,  # [N]
) -> tuple[Tensor, Tensor, Tensor]:  # total, task, auxiliary
    """Train a network and its auxiliary classifiers on labels: classes upright, joint labels on every row.

    task = CE(p[0::M], y),   auxiliary = sum over stages of CE(q, M y + k) over all rows,   total = task + auxiliary
    """
    num_transforms = _num_transforms(logits, auxiliary_logits, labels)
    joint_labels = _joint_labels(labels, num_transforms)
    task = F.cross_entropy(full_precision(logits)[::num_transforms], labels)
    auxiliary = sum(F.cross_entropy(full_precision(stage), joint_labels) for stage in auxiliary_logits)
    return task + auxiliary, task, auxiliary


def hsakd_student_loss(
    *,
    student_logits: Tensor,  # [M N, K]
    student_auxiliary_logits: Sequence[Tensor],  # [M N, M K] a stage
    teacher_logits: Tensor,  # [M N, K], detached
    teacher_auxiliary_logits: Sequence[Tensor],  # [M N, M K] a stage, as many as the student's, detached
    labels: Tensor,  # [N]
    temperature: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # total, task, kd, auxiliary kd
    """The student follows the teacher's class and joint distributions on every transformed row, stage by stage.

    task = CE(p_s[0::M], y),   kd = kd_loss(p_s, p_t),   auxiliary = sum over stages of kd_loss(q_s, q_t)
    total = task + kd + auxiliary

    No cross-entropy on the joint labels: the teacher's distribution already holds them.
    """
    num_transforms = _num_transforms(student_logits, student_auxiliary_logits, labels)
    _same_stages(student_auxiliary_logits, teacher_auxiliary_logits)
    task = F.cross_entropy(full_precision(student_logits)[::num_transforms], labels)
    kd = kd_loss(student_logits=student_logits, teacher_logits=teacher_logits, temperature=temperature)
    stages = zip(student_auxiliary_logits, teacher_auxiliary_logits, strict=True)
    auxiliary = sum(kd_loss(student_logits=s, teacher_logits=t, temperature=temperature) for s, t in stages)
    return task + kd + auxiliary, task, kd, auxiliary


def hsakd_mutual_loss(
    *,
    logits: Sequence[Tensor],  # two peers, [M N, K] each
    auxiliary_logits: Sequence[Sequence[Tensor]],  # two peers, [M N, M K] a stage
    labels: Tensor,  # [N]
    temperature: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor]:  # total, cross-entropies, divergences
    """Two peers learn together: each has the teacher's loss on labels, and follows the other's distributions.

    total = sum over peers of hsakd_teacher_loss + sum over both directions of kd on p and on every stage's q

    The followed peer is detached in every divergence. Raises ValueError when there are not two peers or shapes do not fit.
    """
    if len(logits) != 2 or len(auxiliary_logits) != 2:
        raise ValueError(f"it takes two peers, not {len(logits)} of class and {len(auxiliary_logits)} of joint logits")
    _same_stages(*auxiliary_logits)
    peers = list(zip(logits, auxiliary_logits, strict=True))
    cross_entropy = sum(hsakd_teacher_loss(logits=p, auxiliary_logits=q, labels=labels)[0] for p, q in peers)
    first, second = ([p, *q] for p, q in peers)
    pairs = [pair for both in zip(first, second, strict=True) for pair in (both, both[::-1])]
    divergence = sum(kd_loss(student_logits=a, teacher_logits=b, temperature=temperature) for a, b in pairs)
    return cross_entropy + divergence, cross_entropy, divergence


def joint_to_class_logits(
    *,
    joint_logits: Tensor,  # [N, M K]
    num_transforms: int = 4,  # M
) -> Tensor:  # [N, K]
    """Class logits of an auxiliary classifier, to watch its accuracy: the sum of each class's M joint logits."""
    if joint_logits.shape[1] % num_transforms:
        raise ValueError(f"{joint_logits.shape[1]} joint logits cannot be classes times {num_transforms} transforms")
    return full_precision(joint_logits).unflatten(1, (-1, num_transforms)).sum(2)


def _joint_labels(labels: Tensor, num_transforms: int) -> Tensor:
    return (num_transforms * labels[:, None].long() + torch.arange(num_transforms, device=labels.device)).flatten()


def _num_transforms(logits: Tensor, auxiliary_logits: Sequence[Tensor], labels: Tensor) -> int:
    num_transforms, rest = divmod(len(logits), len(labels))
    if rest or num_transforms == 0:
        raise ValueError(f"{len(logits)} rows of logits are no multiple of {len(labels)} labels")
    if not auxiliary_logits:
        raise ValueError("no auxiliary logits: the network needs an auxiliary classifier at one stage at least")
    wanted = [len(logits), num_transforms * logits.shape[1]]
    for stage, joint in enumerate(auxiliary_logits):
        if list(joint.shape) != wanted:
            raise ValueError(
                f"auxiliary logits of stage {stage} have shape {list(joint.shape)}, not {wanted}: "
                f"{num_transforms} transforms of {len(labels)} images, and as many joint labels a class"
            )
    return num_transforms


def _same_stages(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} auxiliary classifiers cannot be paired; tap as many stages in both networks"
        )
