"""Distillation losses: pure functions of tensors, one file a family, all importable from here.

Arguments are keywords; batches come first in every shape. A loss is computed in float32 (float64 inputs stay float64),
also inside autocast, and carries gradients to the student only: whatever comes from the teacher is detached.
"""

from .logits import kd_loss
from .regression import regression_kd_loss
from .similarity import similarity_preserving_loss

__all__ = [
    "kd_loss",
    "regression_kd_loss",
    "similarity_preserving_loss",
]
