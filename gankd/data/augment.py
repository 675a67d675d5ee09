"""Augmentation of a whole batch on its device, with one random draw a sample.

`Augment` draws, then applies what was drawn, so that a draw can be kept and repeated (see `views`); the pure functions
below it can be checked one by one. Padded crop and flip copy bytes of the uint8 images; everything else works on floats
in [0, 1]. All of it is tensor operations without a host synchronisation.

Self-supervised methods compare strong views: resized crop, flip, colour jitter, greyscale and blur are those of SimCLR
(Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv 2002.05709),
with the colours changed in a fixed order.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from generators.images import to_unit_range
from generators.settings import Settings, Share

PositiveShare = Annotated[float, Field(gt=0, le=1)]
Sigma = Annotated[float, Field(gt=0, le=100)]


class AugmentationConfig(Settings):
    """Random changes of the training images, drawn anew for every sample of every batch; all off by default."""

    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 0
    """Pixels of black border added on each side before a random crop back to the original size (4 on CIFAR)."""
    resized_crop: tuple[PositiveShare, PositiveShare] | None = None
    """Smallest and largest share of the image's area, [0.2, 1] or [0.08, 1] for self-supervision: a box of a random share
    and place, its width over its height between 3/4 and 4/3, is enlarged to the image's size. In place of
    crop_padding."""
    horizontal_flip: bool = False
    """Mirror left and right with probability 1/2."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0
    """Degrees: the angle is uniform in [-rotation, rotation]."""
    translation: Annotated[float, Field(ge=0, lt=1)] = 0
    """PositiveShare of the width and of the height: both shifts are uniform in [-translation, translation]."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0
    """The magnification is uniform in [1 - scale, 1 + scale]."""
    cutout: Share = 0
    """Side of a black square at a random place, as a share of the shorter side of the image."""
    brightness: Share = 0
    """The factor on all pixels is uniform in [1 - brightness, 1 + brightness]."""
    contrast: Share = 0
    """The factor on the distance from the image's mean grey is uniform in [1 - contrast, 1 + contrast]."""
    saturation: Share = 0
    """The factor on the distance from the pixel's own grey is uniform in [1 - saturation, 1 + saturation]; grey images
    do not change."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0
    """PositiveShare of the colour circle: the shift of all colours along it is uniform in [-hue, hue]; grey images do not
    change."""
    jitter_probability: Share = 1.0
    """Brightness, contrast, saturation and hue change an image together with this probability, else none of them does
    (SimCLR: 0.8)."""
    greyscale: Share = 0
    """Probability that an image loses its colours (SimCLR: 0.2)."""
    blur: tuple[Sigma, Sigma] | None = None
    """Smallest and largest standard deviation of a Gaussian blur, in pixels (SimCLR: [0.1, 2] at 224 pixels, no blur on
    CIFAR)."""
    blur_probability: Share = 0.5
    """Probability that an image is blurred, where `blur` is set."""

    @field_validator("resized_crop", "blur")
    @classmethod
    def _ranges_ascend(cls, ends):
        if ends is not None and ends[0] > ends[1]:
            raise ValueError(f"the smallest value comes first: [{ends[1]}, {ends[0]}], got {list(ends)}")
        return ends

    @model_validator(mode="after")
    def _crops_one_way(self):
        if self.crop_padding and self.resized_crop is not None:
            raise ValueError("crop_padding and resized_crop are two ways to crop: set only one of them")
        return self


SELF_SUPERVISED = AugmentationConfig(
    resized_crop=(0.2, 1),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter_probability=0.8,
    greyscale=0.2,
)
"""Of methods without labels, as VICReg and Squeeze and Span have it, but for the flip, which not all images bear."""


class Augment(nn.Module):
    """uint8 [N, C, H, W] to float32 [N, C, H, W] in [0, 1]; random changes in training mode only.

    In the order crop, flip, one affine map (rotation, scale, translation), brightness, contrast, saturation, hue,
    greyscale, blur, cutout.
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
        # From here on not in the order of use, so that what is above is drawn the same with and without what is below.
        if config.resized_crop is not None:
            smallest, largest = config.resized_crop
            shares = around((smallest + largest) / 2, (largest - smallest) / 2)
            ratios = around(0, math.log(4 / 3)).exp()
            draws["boxes"] = crop_boxes(shares, ratios, torch.rand(num_images, 2, **where), size)
        if config.hue:
            draws["hue"] = around(0, config.hue)
        if config.jitter_probability < 1:
            jittered = torch.rand(num_images, **where) < config.jitter_probability
            for name, unchanged in {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}.items():
                if name in draws:
                    draws[name] = torch.where(jittered, draws[name], unchanged)
        if config.greyscale:
            draws["greys"] = torch.rand(num_images, **where) < config.greyscale
        if config.blur is not None:
            smallest, largest = config.blur
            sigmas = around((smallest + largest) / 2, (largest - smallest) / 2)
            blurred = torch.rand(num_images, **where) < config.blur_probability
            draws["sigmas"] = torch.where(blurred, sigmas, 0)
        return draws

    def apply_draws(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """uint8 images [N, C, H, W] changed as `draw` says, float32 in [0, 1]; nothing here is random."""
        assert images.dtype == torch.uint8, f"images are {images.dtype}, expected uint8"
        if "offsets" in draws:
            images = random_crop(images, draws["offsets"], self.config.crop_padding)
        if "boxes" in draws:
            images = resized_crop(to_unit_range(images), draws["boxes"])
        if "flips" in draws:
            images = horizontal_flip(images, draws["flips"])
        if "boxes" not in draws:
            images = to_unit_range(images)
        if "angles" in draws:
            images = affine(images, draws["angles"], draws["shifts"], draws["scales"])
        if "brightness" in draws:
            images = adjust_brightness(images, draws["brightness"])
        if "contrast" in draws:
            images = adjust_contrast(images, draws["contrast"])
        if "saturation" in draws:
            images = adjust_saturation(images, draws["saturation"])
        if "hue" in draws:
            images = adjust_hue(images, draws["hue"])
        if "greys" in draws:
            images = greyscale(images, draws["greys"])
        if "sigmas" in draws:
            images = gaussian_blur(images, draws["sigmas"], math.ceil(2 * self.config.blur[1]))
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


def crop_boxes(shares: Tensor, ratios: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in whole pixels for `resized_crop`, int64 [N, 4]: (top, left, height, width).

    As torchvision's RandomResizedCrop, which draws share and ratio up to ten times until the box fits into the image;
    here the side that is too long is cut instead, so that nothing waits for a draw. A share close to 1 thus gives a box
    that is a little smaller, with a ratio between 1 and the one drawn in a square image.

    Args:
        shares: [N], area of the box over the area of the image, in (0, 1].
        ratios: [N], width over height.
        places: [N, 2], each in [0, 1): where among its possible (rows, columns) the box lies.
        size: (height, width) of the images.
    """
    height, width = size
    heights = (height * width * shares / ratios).sqrt().round().clamp(1, height)
    widths = (height * width * shares * ratios).sqrt().round().clamp(1, width)
    tops = (places[:, 0] * (height - heights + 1)).floor()
    lefts = (places[:, 1] * (width - widths + 1)).floor()
    return torch.stack([tops, lefts, heights, widths], dim=1).long()


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge one box of each image to the image's size, bilinearly; what lies outside the box has no influence.

    Args:
        images: float [N, C, H, W] in [0, 1].
        boxes: int64 [N, 4], (top, left, height, width), each within its image: enlarging needs no antialiasing.
    """
    height, width = images.shape[2:]

    def along(length: int, start: Tensor, extent: Tensor) -> Tensor:
        """Where `length` output pixels come from, [N, length], in the units of grid_sample (-1 and 1 are the borders)."""
        start, extent = start[:, None], extent[:, None]
        centres = (torch.arange(length, device=images.device) + 0.5) * (extent / length)  # from the box's border
        inside = torch.minimum(centres.clamp(min=0.5), extent - 0.5)  # repeats the outermost pixels of the box
        return (start + inside) * (2 / length) - 1

    top, left, box_height, box_width = boxes.unbind(dim=1)
    x, y = along(width, left, box_width)[:, None, :], along(height, top, box_height)[:, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)  # [N, H, W, 2]
    # bounded twice: by `along` at the box, and here where rounding puts a point 1e-7 outside the image
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return images.clamp_(0, 1)  # the four bilinear weights may sum to 1 + 1e-7


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


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Move the hue of each pixel along the colour circle, with its HSV saturation and value kept.

    With V = max(R, G, B), chroma C = V - min(R, G, B) and hue h in [0, 1) (red 0, green 1/3, blue 2/3), the colour of
    (h, C, V) is V - C clamp(2 - 6 |h - o|, 0, 1) in each channel, where o is the hue opposite to the channel's and
    |.| the distance along the circle: the usual conversion from HSV to RGB without its six cases.

    Args:
        images: float [N, C, H, W] in [0, 1]; those of one channel are returned as they are.
        shifts: [N], in turns of the circle; only the fraction matters.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    value = images.amax(dim=1, keepdim=True)  # [N, 1, H, W]
    chroma = value - images.amin(dim=1, keepdim=True)
    sixths = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    # of a grey pixel the hue is 0 / 0 and without influence: the smallest normal number makes it 0
    hue = sixths / (6 * chroma).clamp(min=torch.finfo(images.dtype).tiny) + shifts[:, None, None, None]
    opposite = 0.5 + torch.arange(3, device=images.device)[:, None, None] / 3  # cyan, magenta, yellow
    distance = hue - opposite  # [N, 3, H, W]
    distance = (distance - distance.round()).abs_()
    return value - distance.mul_(-6).add_(2).clamp_(0, 1).mul_(chroma)


def greyscale(images: Tensor, mask: Tensor) -> Tensor:
    """Put the grey of each pixel into all channels of the images [N, C, H, W] whose `mask` (bool [N]) is set."""
    return torch.where(mask[:, None, None, None], _grey(images), images)


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Weigh the neighbours of each pixel with a Gaussian, cut off at `radius` and divided by its sum.

    The outermost pixels are repeated beyond the border. Sums of shifted images instead of a convolution, which TF32 and
    autocast may round to 8 or 11 bits.

    Args:
        images: float [N, C, H, W] in [0, 1].
        sigmas: [N], standard deviations in pixels; 0 leaves an image as it is.
        radius: pixels.
    """
    height, width = images.shape[2:]
    distances = torch.arange(radius + 1, device=images.device)
    # Below 0.01 pixels the weights of the neighbours are 0 in float32 anyway, and 0 / 0 is avoided.
    weights = (-0.5 * (distances / sigmas.clamp(min=0.01)[:, None]).square()).exp()  # [N, radius + 1]
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - 1)  # the middle, of weight exp(0) = 1, counts once
    middle, *others = weights[:, :, None, None, None].unbind(dim=1)  # each [N, 1, 1, 1]
    for dim, length, padding in ((2, height, (0, 0, radius, radius)), (3, width, (radius, radius, 0, 0))):
        padded = F.pad(images, padding, mode="replicate")
        images = middle * images
        for distance, weight in enumerate(others, start=1):
            before, after = (padded.narrow(dim, radius + step, length) for step in (-distance, distance))
            images.addcmul_(weight, before + after)
    return images.clamp_(0, 1)  # the weights may sum to 1 + 1e-7


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 as [N, 1, H, W]; an image of one channel is its own grey."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
