"""Where pixels change their range: the one place that converts between the three forms of an image.

At rest uint8 [N, C, H, W] in 0..255; in a classifier float in [0, 1] before its own normalisation; in a generator
float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Images(Protocol):
    """Images uint8 [N, C, H, W]: a tensor, or what indexes like one and reads them when they are asked for."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 [..., H, W] in 0..255 to float32 in [0, 1]."""
    return images.float() / 255


def to_generator_range(images: Tensor) -> Tensor:
    """uint8 [..., H, W] in 0..255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def from_generator_range(images: Tensor) -> Tensor:
    """Float [..., H, W] in [-1, 1] to uint8, clamped and rounded to nearest (the original cGAN-KD code truncates)."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_uint8(image: Any) -> Tensor:
    """One image in any usual form to uint8 [C, H, W].

    Accepts a PIL image, a uint8 array or tensor ([H, W], [H, W, C] or [C, H, W]; C is 1 or 3) or a float tensor
    [C, H, W] in [0, 1] as torchvision's `ToTensor` makes it.

    Raises:
        ValueError: another shape or type, or floats outside [0, 1] (a data set that normalises its images itself).
    """
    if not isinstance(image, Tensor):
        import numpy

        image = torch.from_numpy(numpy.array(image))  # a copy: PIL's buffer is read-only
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3:
        raise ValueError(f"an image has shape {tuple(image.shape)}; expected [C, H, W] or [H, W, C].")
    if image.shape[0] not in (1, 3) and image.shape[-1] in (1, 3):
        image = image.permute(2, 0, 1)
    if image.shape[0] not in (1, 3):
        raise ValueError(f"an image has shape {tuple(image.shape)}; expected 1 or 3 channels.")
    if image.dtype == torch.uint8:
        return image.contiguous()
    if not image.dtype.is_floating_point:
        raise ValueError(f"an image has type {image.dtype}; expected uint8, or float in [0, 1].")
    if image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"an image has values in [{image.min():.3g}, {image.max():.3g}]; expected floats in [0, 1]: "
            "leave normalisation out of the data set's transform, the networks normalise their own input."
        )
    return (image.float() * 255).round().to(torch.uint8)
