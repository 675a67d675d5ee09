"""What a teacher says about labels: how wrong it finds them, and what it would put in their place.

Both: Ding, Wang, Xu, Wang, Welch, "Distilling and Transferring Knowledge via cGAN-generated Samples for Image Classification
and Regression" (cGAN-KD), 2021, arXiv 2104.03164, module M2.
"""

import torch.nn.functional as F
from torch import Tensor


def teacher_error(
    *,
    teacher_outputs: Tensor,
    labels: Tensor,
    task: str,
    label_min: float | None = None,
    label_max: float | None = None,
) -> Tensor:
    """How wrong a teacher finds each label, [N].

    Classification: cross-entropy of the teacher's logits [N, K] against labels [N]. Regression: |clip(t, 0, 1) - y| with
    the outputs t normalised to [0, 1], clipped, and taken back to the units of the labels.
    """
    if task == "classification":
        return F.cross_entropy(teacher_outputs.float(), labels, reduction="none")
    return (denormalized(teacher_outputs, label_min, label_max) - labels).abs()


def adjust_labels(
    *,
    teacher_outputs: Tensor,
    labels: Tensor,
    task: str,
    replace: bool,
    label_min: float | None = None,
    label_max: float | None = None,
) -> Tensor:
    """Labels [N] after label replacement: the teacher's class, or its clipped prediction in label units; unchanged when not
    `replace`. Outputs as in `teacher_error`."""
    if not replace:
        return labels
    if task == "classification":
        return teacher_outputs.argmax(dim=1)
    return denormalized(teacher_outputs, label_min, label_max).to(labels.dtype)


def check_answers(outputs: Tensor, right: Tensor) -> None:
    """Raise a ValueError when entries of outputs [N, ...] are not `right`, of the same shape: NaN or infinite."""
    if count := int((~right).reshape(len(outputs), -1).any(1).sum()):
        raise ValueError(
            f"the network answers {count} of {len(outputs)} images with NaN or infinity: its training diverged or its "
            "weights are damaged; train it with a lower learning rate or load other weights."
        )


def denormalized(teacher_outputs: Tensor, label_min: float, label_max: float) -> Tensor:
    """Outputs on the scale where the label range is [0, 1] in the labels' units, clipped to the range, [N]."""
    labels = teacher_outputs.flatten().clamp(0, 1) * (label_max - label_min) + label_min
    return labels.clamp(label_min, label_max)  # rounding must not leave the range
