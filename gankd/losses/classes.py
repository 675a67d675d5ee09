"""What losses on class logits are made of: how wrong outputs are, and how far from others.

Methods pass their task in its place, so that one equation serves classes, bins and scalars (see `gankd.tasks`).
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from .mixing import mixup_cross_entropy
from .precision import full_precision
from .smoothing import cross_entropy


class Equations(Protocol):
    """The part of a task that losses on several outputs ask for. Means are over the batch."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How wrong outputs [N, K] are about labels [N], a scalar."""

    def mixed_loss(self, outputs: Tensor, labels: Tensor, permutation: Tensor, mixing: float) -> Tensor:
        """How wrong outputs [N, K] on images mixed with their partners are, a scalar."""

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How wrong outputs [N, K] are about each label, [N]."""

    def divergence(self, outputs: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
        """How far outputs [N, K] are from others of their form, a scalar; the gradient reaches both."""


class ClassEquations:
    """Those of class logits [N, K] and class ids [N]."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, mean over the batch."""
        return cross_entropy(outputs, labels)

    def mixed_loss(self, outputs: Tensor, labels: Tensor, permutation: Tensor, mixing: float) -> Tensor:
        """Cross-entropy to both classes of a mixed image by their shares, mean over the batch."""
        return mixup_cross_entropy(student_logits=outputs, labels=labels, permutation=permutation, mixing=mixing)

    def error(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each sample [N], in nats."""
        return F.cross_entropy(full_precision(outputs), labels, reduction="none")

    def divergence(self, outputs: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
        """T^2 KL( softmax(targets / T) || softmax(outputs / T) ), mean over the batch."""
        return softened_divergence(full_precision(outputs), full_precision(targets), temperature).mean()


CLASSES = ClassEquations()


def softened_divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(targets / T) || softmax(logits / T) ) over the last axis; shapes broadcast, targets attached."""
    log_probabilities = F.log_softmax(logits / temperature, dim=-1)
    log_targets = F.log_softmax(targets / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_probabilities, log_targets, reduction="none", log_target=True).sum(-1)
