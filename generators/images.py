"""Where pixels change their range: the one place that converts between the three forms of an image.

At rest uint8 [N, C, H, W] in 0..255; in a classifier float in [0, 1] before its own normalisation; in a generator
float in [-1, 1].
"""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

FAINT = 0.05  # of the range: a channel whose standard deviation is less hardly varies


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


def from_generator_to_unit(images: Tensor) -> Tensor:
    """Float [..., H, W] in [-1, 1] to [0, 1], with its gradient."""
    return (images + 1) / 2


def from_generator_range(images: Tensor) -> Tensor:
    """Float [..., H, W] in [-1, 1] to uint8, clamped and rounded to nearest (the original cGAN-KD code truncates)."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_uint8(image: Any) -> Tensor:
    """One image in any usual form to uint8 [C, H, W], C = 1 (grey) or 3 (colour).

    A PIL image as `flat_picture` has it; or an array or tensor [H, W], [H, W, C] or [C, H, W] of uint8, of uint16 (65535
    becomes 255), or of floats in [0, 1] as torchvision's `ToTensor` makes it.
    Raises ValueError: another shape or type, or floats that are NaN or outside [0, 1] (a data set that normalises its
    images itself).
    """
    if not isinstance(image, Tensor):
        import numpy

        is_picture = hasattr(image, "getexif")  # of PIL
        values = numpy.array(flat_picture(image) if is_picture else image)  # a copy: it may be read-only
        image = torch.from_numpy(values)
        if is_picture and image.ndim == 3:
            return image.permute(2, 0, 1).contiguous()
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3:
        raise ValueError(f"an image has shape {tuple(image.shape)}; expected [C, H, W] or [H, W, C].")
    if image.shape[0] not in (1, 3) and image.shape[-1] in (1, 3):
        image = image.permute(2, 0, 1)
    if image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image has shape {tuple(image.shape)}; expected 1 or 3 channels.")
    if image.dtype == torch.uint8:
        return image.contiguous()
    if image.dtype == torch.uint16:
        return (image.to(torch.int32) / 257).round().to(torch.uint8)
    if not image.dtype.is_floating_point:
        raise ValueError(f"an image has type {image.dtype}; expected uint8, uint16, or float in [0, 1].")
    if not image.isfinite().all():
        raise ValueError("an image has pixels that are NaN or infinite; expected floats in [0, 1].")
    if image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"an image has values in [{image.min():.3g}, {image.max():.3g}]; expected floats in [0, 1]: "
            "leave normalisation out of the data set's transform, the networks normalise their own input."
        )
    return (image.float() * 255).round().to(torch.uint8)


def flat_picture(image):
    """A PIL image of any mode as it is seen: a PIL image of mode L where it is grey and RGB where it has colour.

    It is turned as its EXIF tag says, palettes are looked up, what is transparent lies on white, and 16 bits are scaled to
    8 (65535 becomes 255).
    Raises ValueError: a mode in which white is no certain number (32-bit integers, floats outside [0, 1]).
    """
    import numpy
    from PIL import Image, ImageOps

    if image.getexif().get(0x0112, 1) != 1:  # the tag of the orientation
        image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((numpy.asarray(image) / 257).round().astype(numpy.uint8))
    if mode == "F":
        return Image.fromarray(as_uint8(numpy.array(image))[0].numpy())
    if mode == "I":
        raise ValueError("an image has 32-bit integers (mode I), whose white is not known; save it with 8 or 16 bits.")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = [ImageCms.createProfile(space) for space in ("LAB", "sRGB")]
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB")


def channel_statistics(images, sample: int = 10_000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, each [C], of uint8 images [N, C, H, W] as numbers in [0, 1], from an even
    sample of at most `sample` of them; what networks normalise their input with.

    A channel that hardly varies (a deviation below 0.05) gets the largest deviation of all channels, 0.05 at least, and a
    warning names it: divided by its own, its coding noise would become the loudest input, and an image that is saved again
    as JPEG another image (spots in blue with red and green of .002: the error of a small network rises from .5 to 14).
    """
    indices = torch.linspace(0, len(images) - 1, min(sample, len(images))).long()
    pixels = to_unit_range(images[indices].cpu())
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), unbiased=False)
    shared = max(FAINT, std.max().item())
    names = ("red", "green", "blue") if len(std) == 3 else [str(channel) for channel in range(len(std))]
    faint = [f"{name} ({value:.3g})" for name, value in zip(names, std.tolist(), strict=True) if value < FAINT]
    if faint:
        warnings.warn(
            f"images hardly vary in channel {', '.join(faint)}: it is normalised with a standard deviation of "
            f"{shared:.3g} of its range, so that noise is no signal; give `normalize` where small differences matter.",
            stacklevel=2,
        )
    return mean, torch.where(std < FAINT, shared, std)
