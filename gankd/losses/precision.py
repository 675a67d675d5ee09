"""The precision in which losses are computed."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """float32, or float64 if it already is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
