"""From files, encoded bytes and arrays to uint8 images of one size and one number of channels.

`data.image_size` squeezes an image to a square rather than cropping it, so that nothing at its edge is lost. Every
reduction is antialiased. Grey is the luma of ITU-R BT.601, as in PIL.
"""

from __future__ import annotations

import collections
import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.data.config import DataConfig
from gankd.data.sets import LazyImages
from generators.images import as_uint8

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CHUNK = 64  # images a thread decodes in a row, or that are converted as floats at a time


def find_images(folder: Path) -> list[Path]:
    """All image files below `folder`, by suffix, sorted; hidden files are left out."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def encoded_images(sources: Sequence[Path | memoryview], config: DataConfig, *, name: str) -> Tensor | LazyImages:
    """Images from N files or encoded byte strings, in that order.

    The first image gives the size and the number of channels that the settings leave open. A set within
    `memory_budget` is decoded at once by several threads; a larger one is decoded when it is asked for.

    Returns:
        uint8 [N, C, H, W], or lazily read images of that shape.

    Raises:
        ValueError: no images at all, or an image that does not decode, has more than 8 bits a channel, has another
            size than the first with `image_size` open, or has colour where the first is grey with `channels` open.
    """

    def name_of(index: int) -> str:
        return str(sources[index]) if isinstance(sources[index], Path) else f"{name}, image {index}"

    if not sources:
        raise ValueError(f"data.root: {name} has no images.")
    first = decode(sources[0], name_of(0))
    channels = config.channels or num_channels(first)
    width, height = (config.image_size, config.image_size) if config.image_size else first.size

    def read(index: int) -> Tensor:
        from PIL import Image

        image = decode(sources[index], name_of(index))
        if config.channels is None and num_channels(image) > channels:
            raise ValueError(f"{name_of(index)} has colour, {name_of(0)} is grey: set data.channels to 1 or 3.")
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            if config.image_size is None:
                raise ValueError(
                    f"{name_of(index)} has {image.width}x{image.height} pixels, {name_of(0)} has {width}x{height}: "
                    "set data.image_size."
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return as_uint8(image)

    lazy = LazyImages(read, (len(sources), channels, height, width))
    if len(sources) * channels * height * width > config.memory_budget << 20:
        return lazy
    images = torch.empty(lazy.shape, dtype=torch.uint8)

    def store(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(sources))):
            images[index] = read(index)

    with ThreadPoolExecutor(max_workers=8) as pool:
        collections.deque(pool.map(store, range(0, len(sources), CHUNK)), maxlen=0)  # drains it: an error is raised
    return images


def decode(source: Path | memoryview, name: str):
    """The whole PIL image in its own mode.

    Raises:
        ValueError: it does not decode, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} does not decode as an image ({error}): repair or remove it.") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}): save it as an 8-bit image.")
    return image


def num_channels(image) -> int:
    """1 for a grey PIL image, 3 for any other."""
    return 1 if image.mode in ("1", "L", "LA") else 3


def array_images(array, config: DataConfig, *, name: str) -> Tensor:
    """Images from anything that slices like a uint8 array [N, H, W], [N, H, W, C] or [N, C, H, W], C = 1 or 3.

    Returns:
        uint8 [N, C, H, W], resized and with the channels that the settings ask for.

    Raises:
        ValueError: another type or shape.
    """
    shape = tuple(array.shape)
    channels_last = len(shape) == 4 and shape[1] not in (1, 3)
    source_channels = 1 if len(shape) == 3 else shape[-1 if channels_last else 1] if len(shape) == 4 else None
    if array.dtype != numpy.uint8 or source_channels not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{name}: images are {array.dtype} {shape}; expected uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]."
        )
    height, width = shape[1:3] if channels_last or len(shape) == 3 else shape[2:]
    size = (config.image_size, config.image_size) if config.image_size else (height, width)
    channels = config.channels or source_channels
    images = torch.empty(shape[0], channels, *size, dtype=torch.uint8)
    for start in range(0, shape[0], CHUNK):
        chunk = torch.from_numpy(numpy.array(array[start : start + CHUNK]))
        if chunk.ndim == 3:
            chunk = chunk[:, None]
        elif channels_last:
            chunk = chunk.permute(0, 3, 1, 2)
        images[start : start + CHUNK] = resize(with_channels(chunk, channels), size)
    return images


def with_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 [N, C, H, W] as grey (1) or colour (3)."""
    if channels == images.shape[1]:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    luma = torch.tensor([0.299, 0.587, 0.114])
    return torch.einsum("nchw,c->nhw", images.float(), luma)[:, None].round().to(torch.uint8)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] to `size` (H, W): bilinear, antialiased where it shrinks, rounded to nearest."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
