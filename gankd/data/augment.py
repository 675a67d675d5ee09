"""Augmentation of a whole batch on its device, with one random draw a sample.

`Augment` draws, then applies what was drawn, so that a draw can be kept and repeated (see `views`); the pure functions
below it can be checked one by one. Crop and flip copy bytes of the uint8 images; everything else works on floats in
[0, 1]. All of it is tensor operations without a host synchronisation.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from generators.images import to_unit_range
from generators.settings import Settings


class AugmentationConfig(Settings):
    """Random changes of the training images, drawn anew for every sample of every batch; all off by default."""

    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 0
    """Pixels of black border added on each side before a random crop back to the original size (4 on CIFAR)."""
    horizontal_flip: bool = False
    """Mirror left and right with probability 1/2."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0
    """Degrees: the angle is uniform in [-rotation, rotation]."""
    translation: Annotated[float, Field(ge=0, lt=1)] = 0
    """Share of the width and of the height: both shifts are uniform in [-translation, translation]."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0
    """The magnification is uniform in [1 - scale, 1 + scale]."""
    cutout: Annotated[float, Field(ge=0, le=1)] = 0
    """Side of a black square at a random place, as a share of the shorter side of the image."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0
    """The factor on all pixels is uniform in [1 - brightness, 1 + brightness]."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0
    """The factor on the distance from the image's mean grey is uniform in [1 - contrast, 1 + contrast]."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0
    """The factor on the distance from the pixel's own grey is uniform in [1 - saturation, 1 + saturation]; grey images
    do not change."""


class Augment(nn.Module):
    """uint8 [N, C, H, W] to float32 [N, C, H, W] in [0, 1]; random changes in training mode only.

    In the order crop, flip, one affine map (rotation, scale, translation), brightness, contrast, saturation, cutout.
    Draws come from the default random generator of the images' device; what is off draws nothing and costs nothing.
    """

    def __init__(self, config: AugmentationConfig):
        super().__init__()
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.apply_draws(images, {})
        return self.apply_draws(images, self.draw(len(images), tuple(images.shape[2:]), device=images.device))

    def draw(
        self,
        num_images: int,
        size: tuple[int, int],  # height, width
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,  # None: the default one of the device
    ) -> dict[str, Tensor]:
        """What is random about `num_images` views: tensors by name, their row i belongs to image i; {} with all off."""
        config, draws = self.config, {}
        where = {"device": device, "generator": generator}

        def around(middle: float, spread: float, *shape: int) -> Tensor:
            """Uniform in middle +- spread, one draw (of `shape`) an image."""
            return middle + spread * (2 * torch.rand(num_images, *shape, **where) - 1)

        if config.crop_padding:
            draws["offsets"] = torch.randint(2 * config.crop_padding + 1, (num_images, 2), **where)
        if config.horizontal_flip:
            draws["flips"] = torch.rand(num_images, **where) < 0.5
        if config.rotation or config.translation or config.scale:
            draws["angles"], draws["shifts"] = around(0, config.rotation), around(0, config.translation, 2)
            draws["scales"] = around(1, config.scale)
        if config.brightness:
            draws["brightness"] = around(1, config.brightness)
        if config.contrast:
            draws["contrast"] = around(1, config.contrast)
        if config.saturation:
            draws["saturation"] = around(1, config.saturation)
        if config.cutout:
            centres = [torch.randint(length, (num_images,), **where) for length in size]
            draws["centres"] = torch.stack(centres, dim=1)  # (row, column)
        return draws

    def apply_draws(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """uint8 images [N, C, H, W] changed as `draw` says, float32 in [0, 1]; nothing here is random."""
        assert images.dtype == torch.uint8, f"images are {images.dtype}, expected uint8"
        if "offsets" in draws:
            images = random_crop(images, draws["offsets"], self.config.crop_padding)
        if "flips" in draws:
            images = horizontal_flip(images, draws["flips"])
        images = to_unit_range(images)
        if "angles" in draws:
            images = affine(images, draws["angles"], draws["shifts"], draws["scales"])
        if "brightness" in draws:
            images = adjust_brightness(images, draws["brightness"])
        if "contrast" in draws:
            images = adjust_contrast(images, draws["contrast"])
        if "saturation" in draws:
            images = adjust_saturation(images, draws["saturation"])
        if "centres" in draws:
            size = max(1, round(self.config.cutout * min(images.shape[2:])))
            images = cutout(images, draws["centres"], size)
        return images


def random_crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Cut an [H, W] window out of each image after adding `padding` black pixels on each side.

    Args:
        images: [N, C, H, W] of any type.
        offsets: int64 [N, 2], (top, left) corner of the window in the padded image, each in 0..2 * padding.
        padding: pixels.
    """
    num_images, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    padded_height, padded_width = padded.shape[2:]
    # A view of all runs of `width` bytes, then one gather that copies the H runs of every window: three times as fast
    # as indexing [N, C, 2 * padding + 1, 2 * padding + 1, H, W] windows, whose bytes are copied one by one.
    runs = padded.flatten().unfold(0, width, 1)
    planes = torch.arange(num_images * channels, device=images.device).view(num_images, channels, 1)
    top, left = offsets[:, :1, None], offsets[:, 1:, None]  # [N, 1, 1]
    rows = planes * padded_height + top + torch.arange(height, device=images.device)  # [N, C, H]
    return runs.index_select(0, (rows * padded_width + left).flatten()).view(images.shape)


def horizontal_flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images [N, C, H, W] whose `mask` (bool [N]) is set."""
    both = torch.cat([images, images.flip(-1)])  # copying whole rows of bytes is five times as fast as torch.where
    positions = torch.arange(len(images), device=images.device)
    return both.index_select(0, positions + len(images) * mask)


def affine(images: Tensor, angles: Tensor, shifts: Tensor, scales: Tensor) -> Tensor:
    """Turn and magnify each image about its centre, then shift it: one bilinear resampling, black outside.

    Args:
        images: float [N, C, H, W] in [0, 1].
        angles: [N], degrees, positive is anticlockwise.
        shifts: [N, 2], (right, down) as shares of the width and of the height.
        scales: [N], magnification, above 0.
    """
    height, width = images.shape[2:]
    radians = torch.deg2rad(angles)[:, None, None]
    cosine, sine = radians.cos() / scales[:, None, None], radians.sin() / scales[:, None, None]
    # Where each output pixel comes from, in pixels from the centre (x right, y down): input = A^-1 (output - shift).
    # Written out, because `affine_grid` is a matrix product, which TF32 and autocast may round to 8 or 11 bits.
    x = torch.arange(width, device=images.device) - (width - 1) / 2 - width * shifts[:, 0, None, None]  # [N, 1, W]
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2 - height * shifts[:, 1, None, None]
    grid = torch.stack([(cosine * x - sine * y) * (2 / width), (sine * x + cosine * y) * (2 / height)], dim=-1)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return images.clamp(0, 1)  # the four bilinear weights may sum to 1 + 1e-7


def cutout(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Blacken one square of each image, clipped at the border (DeVries & Taylor 2017, arXiv:1708.04552).

    They fill with the mean of the data (zero after normalisation), this with 0.

    Args:
        images: [N, C, H, W] of any type.
        centres: int64 [N, 2], (row, column); the square covers [centre - size // 2, centre - size // 2 + size).
        size: side in pixels.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - (centres[:, :1] - size // 2)  # [N, H], 0 at the square's top
    columns = torch.arange(width, device=images.device) - (centres[:, 1:] - size // 2)  # [N, W]
    inside_rows, inside_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    return images.masked_fill(inside_rows[:, None, :, None] & inside_columns[:, None, None, :], 0)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """factor * image, clamped to [0, 1]; images float [N, C, H, W] in [0, 1], factors [N] >= 0."""
    return (factors[:, None, None, None] * images).clamp(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """mean + factor * (image - mean), clamped to [0, 1], with the image's mean grey; shapes as for brightness."""
    mean = _grey(images).mean(dim=(2, 3), keepdim=True)  # [N, 1, 1, 1]
    return torch.lerp(mean, images, factors[:, None, None, None]).clamp(0, 1)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """grey + factor * (image - grey), clamped to [0, 1], with each pixel's grey; shapes as for brightness."""
    return torch.lerp(_grey(images), images, factors[:, None, None, None]).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 as [N, 1, H, W]; an image of one channel is its own grey."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
