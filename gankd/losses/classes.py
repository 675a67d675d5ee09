"""What losses on class logits are made of: how wrong outputs are, and how far from others.

Methods pass their task in its place, so that one equation serves classes, bins and scalars (see `gankd.tasks`).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import mixup_cross_entropy
from .precision import full_precision
from .smoothing import cross_entropy


class Equations(Protocol):
    """The part of a task that losses on several outputs ask for, see `ClassEquations`; outputs are [N, K]."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor: ...
    def mixed_loss(self, outputs: Tensor, labels: Tensor, permutation: Tensor, mixing: float) -> Tensor: ...
    def error(self, outputs: Tensor, labels: Tensor) -> Tensor: ...
    def divergence(self, outputs: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor: ...
    def soften(self, labels: Tensor, num_outputs: int, dtype: torch.dtype = torch.float32) -> Tensor: ...
    def soft_labels(self, outputs: Tensor, *, temperature: float = 1.0) -> Tensor: ...
    def soft_loss(self, outputs: Tensor, soft_labels: Tensor) -> Tensor: ...
    def soft_divergence(self, outputs: Tensor, soft_labels: Tensor, *, temperature: float = 1.0) -> Tensor: ...


class ClassEquations:
    """Those of class logits [N, K] and class ids [N]; a loss and a divergence are scalars."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How wrong outputs are: cross-entropy, mean over the batch."""
        return cross_entropy(outputs, labels)

    def mixed_loss(self, outputs: Tensor, labels: Tensor, permutation: Tensor, mixing: float) -> Tensor:
        """Cross-entropy to both classes of a mixed image by their shares, mean over the batch."""
        return mixup_cross_entropy(student_logits=outputs, labels=labels, permutation=permutation, mixing=mixing)

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each sample [N], in nats."""
        return F.cross_entropy(full_precision(outputs), labels, reduction="none")

    def divergence(self, outputs: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
        """How far outputs are from others: T^2 KL( softmax(targets / T) || softmax(outputs / T) ), mean over the batch.

        The gradient reaches both."""
        return softened_divergence(full_precision(outputs), full_precision(targets), temperature).mean()

    def soften(self, labels: Tensor, num_outputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Labels as soft labels without any doubt: one-hot [N, K]."""
        return labels.new_zeros(len(labels), num_outputs, dtype=dtype).scatter_(1, labels[:, None], 1)

    def soft_labels(self, outputs: Tensor, *, temperature: float = 1.0) -> Tensor:
        """What outputs say, as something that can be averaged: probabilities [N, K]."""
        return (full_precision(outputs) / temperature).softmax(dim=1)

    def soft_loss(self, outputs: Tensor, soft_labels: Tensor) -> Tensor:
        """Cross-entropy to probabilities [N, K], mean over the batch."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, soft_labels.to(outputs.dtype))

    def soft_divergence(self, outputs: Tensor, soft_labels: Tensor, *, temperature: float = 1.0) -> Tensor:
        """T^2 KL( soft labels || softmax(outputs / T) ), mean over the batch; the soft labels are softened already."""
        log_probabilities = F.log_softmax(full_precision(outputs) / temperature, dim=1)
        return temperature**2 * F.kl_div(log_probabilities, full_precision(soft_labels), reduction="batchmean")


CLASSES = ClassEquations()


def softened_divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(targets / T) || softmax(logits / T) ) over the last axis; shapes broadcast, targets attached."""
    log_probabilities = F.log_softmax(logits / temperature, dim=-1)
    log_targets = F.log_softmax(targets / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_probabilities, log_targets, reduction="none", log_target=True).sum(-1)
