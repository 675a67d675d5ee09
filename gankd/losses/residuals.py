"""Differences between scalar (or vector) predictions and their targets: what the regression losses are made of.

Predictions are [N] or [N, D]; a square is summed over D, and every mean is over the N samples.
"""

import torch
from torch import Tensor

from .checks import check_same_shape
from .precision import full_precision


def residuals(predictions: Tensor, targets: Tensor, names: str) -> Tensor:
    """predictions - targets in full precision, targets detached; names: "<predictions> and <targets>", for the error."""
    check_same_shape(predictions, targets, names)
    return full_precision(predictions) - full_precision(targets.detach())


def squared_norms(differences: Tensor) -> Tensor:
    """[N] or [N, D] -> [N]: |r_n|^2, summed over D."""
    return differences.square().reshape(len(differences), -1).sum(1)


def mean_loss(differences: Tensor, loss: str, delta: float) -> Tensor:
    """mean_n sum_d l(r_nd) of residuals [N] or [N, D], with

      l2     l(r) = r^2
      l1     l(r) = |r|
      huber  l(r) = r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2)

    Returns a scalar. Raises ValueError when the loss is unknown or delta is not positive.
    """
    if delta <= 0:
        raise ValueError(f"the Huber loss turns linear at a positive delta, got {delta}")
    sizes = differences.abs()
    if loss == "l2":
        losses = differences.square()
    elif loss == "l1":
        losses = sizes
    elif loss == "huber":
        losses = torch.where(sizes <= delta, differences.square() / 2, delta * (sizes - delta / 2))
    else:
        raise ValueError(f"unknown regression loss {loss!r}: use 'l2', 'l1' or 'huber'")
    return losses.sum() / len(losses)
