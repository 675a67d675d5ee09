"""Differentiable augmentation: real and fake images pass through the same random changes before the discriminator.

Zhao, Liu, Lin, Zhu, Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020, arXiv 2006.10738.

Each change is a pure function of images [N, C, H, W] (floating point, around [-1, 1], any C) and of one random draw per
image; the result has the images' shape and dtype.

    images = random_diff_augment(images, "color,translation,cutout")
"""

import torch
from torch import Tensor

POLICIES = ("color", "translation", "cutout")
TRANSLATION_RATIO = 0.125  # largest shift, as a share of the side


def brightness(images: Tensor, uniforms: Tensor) -> Tensor:
    """x + (u - 1/2); uniforms [N] in [0, 1)."""
    return images + _per_image(uniforms - 0.5, images)


def saturation(images: Tensor, uniforms: Tensor) -> Tensor:
    """(x - m) * 2u + m with m the mean over the channels of each pixel; uniforms [N] in [0, 1). Grey stays as it is."""
    mean = images.mean(dim=1, keepdim=True)
    return (images - mean) * _per_image(2 * uniforms, images) + mean


def contrast(images: Tensor, uniforms: Tensor) -> Tensor:
    """(x - m) * (u + 1/2) + m with m the mean of the whole image; uniforms [N] in [0, 1)."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _per_image(uniforms + 0.5, images) + mean


def translation(images: Tensor, shifts: Tensor) -> Tensor:
    """out[i, j] = in[i + shift_row, j + shift_column], 0 outside; shifts [N, 2] int64 (rows, columns)."""
    channels, height, width = images.shape[1:]
    rows = torch.arange(height, device=images.device) + shifts[:, :1]  # [N, H]
    columns = torch.arange(width, device=images.device) + shifts[:, 1:]  # [N, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]  # [N, H, W]
    index = (rows.clamp(0, height - 1) * width)[:, :, None] + columns.clamp(0, width - 1)[:, None, :]  # [N, H, W]
    index = index.flatten(1)[:, None].expand(-1, channels, -1)  # one gather: two would move every pixel twice
    return images.flatten(2).gather(2, index).view(images.shape) * inside[:, None]


def cutout(images: Tensor, offsets: Tensor, ratio: float = 0.5) -> Tensor:
    """Zero a box of int(side * ratio + 1/2) rows and columns, cut at the border.

    offsets: [N, 2] int64 (row, column); the box starts at offset - size // 2.
    """
    height, width = images.shape[2:]
    in_rows = _in_box(height, offsets[:, :1], ratio)  # [N, H]
    in_columns = _in_box(width, offsets[:, 1:], ratio)  # [N, W]
    return images * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


def diff_augment(
    images: Tensor,  # [N, C, H, W]
    color_uniforms: Tensor,  # [3, N] in [0, 1): brightness, saturation, contrast
    shifts: Tensor,  # [N, 2] int64
    offsets: Tensor,  # [N, 2] int64
    policy: str,  # comma-separated words of POLICIES; "" changes nothing
    *,
    cutout_ratio: float = 0.5,
    applied: Tensor | None = None,  # bool [3, N]: which images color, translation and cutout change; None: all
) -> Tensor:
    """Apply the changes the policy names, always in the order brightness, saturation, contrast, translation, cutout.

    The draws come from `draw_diff_augment`. Raises ValueError for an unknown word in the policy.
    """
    words = {word.strip() for word in policy.split(",") if word.strip()}
    if unknown := sorted(words - set(POLICIES)):
        raise ValueError(f"unknown augmentation {unknown[0]!r} in policy {policy!r}: use any of {', '.join(POLICIES)}")
    before = images
    if "color" in words:
        images = brightness(images, color_uniforms[0])
        images = saturation(images, color_uniforms[1])
        images = contrast(images, color_uniforms[2])
        images = before = _where(applied, 0, images, before)
    if "translation" in words:
        images = before = _where(applied, 1, translation(images, shifts), before)
    if "cutout" in words:
        images = _where(applied, 2, cutout(images, offsets, cutout_ratio), before)
    return images


def random_mirror(images: Tensor) -> Tensor:
    """Half of the images [N, C, H, W] with left and right exchanged, drawn from the device's default generator."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def draw_diff_augment(
    num_images: int,
    height: int,
    width: int,
    *,
    cutout_ratio: float = 0.5,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Draw what `diff_augment` needs, one draw per image: `diff_augment(images, policy=policy, **draws)`.

    color_uniforms [3, N] in [0, 1); shifts [N, 2] in [-s, s] with s = int(side / 8 + 1/2); offsets [N, 2] in
    [0, side] for a box of even size, [0, side - 1] for an odd one (hence the cutout_ratio).
    The draws come from generator, which must live on device; without one from the device's default generator.
    """

    def integers(low: int, high: int) -> Tensor:  # both ends included
        return torch.randint(low, high + 1, (num_images,), generator=generator, device=device)

    color_uniforms = torch.rand(3, num_images, generator=generator, device=device)
    shifts, offsets = [], []
    for side in (height, width):
        largest = int(side * TRANSLATION_RATIO + 0.5)
        shifts.append(integers(-largest, largest))
        offsets.append(integers(0, side - _box_size(side, cutout_ratio) % 2))
    return {
        "color_uniforms": color_uniforms,
        "shifts": torch.stack(shifts, dim=1),
        "offsets": torch.stack(offsets, dim=1),
    }


def random_diff_augment(
    images: Tensor, policy: str, cutout_ratio: float = 0.5, probability: Tensor | None = None
) -> Tensor:
    """`diff_augment` with draws from the default generator of the images' device.

    probability: [] of each change for each image (Karras et al., "Training Generative Adversarial Networks with Limited
    Data", NeurIPS 2020, arXiv 2006.06676); None: all changes happen.
    """
    if not policy.strip():
        return images
    num_images, _, height, width = images.shape
    draws = draw_diff_augment(num_images, height, width, cutout_ratio=cutout_ratio, device=images.device)
    applied = None if probability is None else torch.rand(3, num_images, device=images.device) < probability
    return diff_augment(images, policy=policy, cutout_ratio=cutout_ratio, applied=applied, **draws)


def _where(applied: Tensor | None, change: int, after: Tensor, before: Tensor) -> Tensor:
    return after if applied is None else torch.where(applied[change][:, None, None, None], after, before)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype)[:, None, None, None]


def _box_size(side: int, ratio: float) -> int:
    if not 0 < ratio <= 1:
        raise ValueError(f"cutout_ratio must lie in (0, 1], got {ratio}; leave cutout out of the policy to cut nothing")
    return int(side * ratio + 0.5)


def _in_box(side: int, offsets: Tensor, ratio: float) -> Tensor:
    """Which of the side's positions the box covers: bool [N, side] for offsets [N, 1]."""
    size = _box_size(side, ratio)
    positions = torch.arange(side, device=offsets.device)
    starts = offsets - size // 2
    return (positions >= starts) & (positions < starts + size)
