"""From files, encoded bytes and arrays to uint8 images of one size and one number of channels.

`data.image_size` squeezes an image to a square rather than cropping it, so that nothing at its edge is lost. Every
reduction is antialiased. Grey is the luma of ITU-R BT.601, as in PIL.
"""

import collections
import dataclasses
import functools
import io
import os
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.data.config import DataConfig
from gankd.data.sets import ImageSet, LazyImages, content_hashes
from generators.images import as_uint8, flat_picture

NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # known to Pillow, which cannot read them alone
CHUNK = 64  # images a thread decodes in a row, or that are converted as floats at a time


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Of the files that Pillow opens as images: ".png", ".jpg", ".jfif", ..."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, form in known if form in Image.OPEN and form not in NO_IMAGES)


def find_images(folder: Path) -> list[Path]:
    """All image files below `folder` and below the folders linked there, by suffix, sorted.

    Hidden files are left out; a warning counts the other files that are no images, by suffix.
    """
    files, skipped, seen = [], collections.Counter(), set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link back to where we came from
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in image_suffixes():
                files.append(Path(directory, name))
            else:
                skipped[suffix or "no suffix"] += 1
    if skipped:
        counts = ", ".join(f"{count} of {suffix}" for suffix, count in sorted(skipped.items()))
        warnings.warn(
            f"{folder}: {len(files)} images are read, {skipped.total()} other files are not ({counts}): Pillow opens no "
            "images of these suffixes.",
            stacklevel=2,
        )
    return sorted(files)


@dataclasses.dataclass(frozen=True)
class Encoded(Sequence):
    """Encoded images that lie one after the other in one array of bytes; image i at offsets[i]:offsets[i + 1]."""

    array: numpy.ndarray
    offsets: list[int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> memoryview:
        return memoryview(self.array)[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Reads image `index` as uint8 [C, H, W]: an object, not a closure, so that it reaches worker processes by pickling."""

    sources: Sequence[Path | memoryview]
    name: str
    channels: int
    size: tuple[int, int]
    """(width, height)."""
    keeps_colour: bool
    """Colour is refused, not made grey, where `channels` is 1."""
    resizes: bool

    def name_of(self, index: int) -> str:
        source = self.sources[index]
        return str(source) if isinstance(source, Path) else f"{self.name}, image {index}"

    def __call__(self, index: int) -> Tensor:
        from PIL import Image

        image = decode(self.sources[index], self.name_of(index))
        if self.keeps_colour and image.mode == "RGB" and self.channels == 1:
            raise ValueError(f"{self.name_of(index)} has colour, {self.name_of(0)} is grey: set data.channels.")
        image = image.convert("L" if self.channels == 1 else "RGB")
        if image.size != self.size:
            if not self.resizes:
                shapes = [f"{width}x{height}" for width, height in (image.size, self.size)]
                raise ValueError(
                    f"{self.name_of(index)} has {shapes[0]} pixels, {self.name_of(0)} has {shapes[1]}: set data.image_size."
                )
            image = image.resize(self.size, Image.Resampling.BILINEAR)
        return as_uint8(image)


def encoded_images(
    sources: Sequence[Path | memoryview], config: DataConfig, *, name: str
) -> tuple[Tensor | LazyImages, Tensor]:
    """Images from N files or encoded byte strings, in that order.

    The first image gives the size and the number of channels that the settings leave open. A set within
    `memory_budget` is decoded at once by several threads; a larger one is decoded when it is asked for.

    Returns uint8 [N, C, H, W], or lazily read images of that shape; and `ImageSet.contents`, int64 [N]: hashes of name, size
    and time of change of each file, or of the encoded bytes.
    Raises ValueError: no images at all, or an image that does not decode, has another size than the first with
    `image_size` open, or has colour where the first is grey with `channels` open.
    """
    if not len(sources):
        raise ValueError(f"data.root: {name} has no images.")
    first = decode(sources[0], str(sources[0]) if isinstance(sources[0], Path) else f"{name}, image 0")
    channels = config.channels or (1 if first.mode == "L" else 3)
    size = (config.image_size, config.image_size) if config.image_size else first.size
    read = _Decoder(sources, name, channels, size, config.channels is None, config.image_size is not None)
    contents = content_hashes(
        _description(source, config.root).encode() if isinstance(source, Path) else source for source in sources
    )
    lazy = LazyImages(read, (len(sources), channels, size[1], size[0]))
    if len(sources) * channels * size[0] * size[1] > config.memory_budget << 20:
        return lazy, contents
    images = torch.empty(lazy.shape, dtype=torch.uint8)

    def store(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(sources))):
            images[index] = read(index)

    with ThreadPoolExecutor(max_workers=8) as pool:
        collections.deque(pool.map(store, range(0, len(sources), CHUNK)), maxlen=0)  # drains it: an error is raised
    return images, contents


def _description(file: Path, root: Path | None) -> str:
    found = file.stat()
    name = os.path.relpath(file, root.expanduser()) if root else file.name
    return f"{name} {found.st_size} {found.st_mtime_ns}"


def decode(source: Path | memoryview, name: str):
    """The whole image as a PIL image of mode L or RGB (see `flat_picture`).
    Raises ValueError: it does not decode, or its mode has no certain white."""
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            image.load()
            return flat_picture(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} does not decode as an image ({error}): repair or remove it.") from error


def array_images(array, config: DataConfig, *, name: str) -> Tensor:
    """Images from anything that slices like an array [N, H, W], [N, H, W, C] or [N, C, H, W], C = 1 or 3, of uint8, uint16
    (65535 becomes 255) or floats in [0, 1].

    Returns uint8 [N, C, H, W], resized and with the channels that the settings ask for.
    Raises ValueError: another type or shape.
    """
    shape = tuple(array.shape)
    expected = "expected uint8 (or uint16, or floats in [0, 1]) [N, H, W], [N, H, W, C] or [N, C, H, W], C = 1 or 3."
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"{name}: images are {array.dtype} {shape}; {expected}")

    def read(start: int, count: int = CHUNK) -> Tensor:
        chunk = []
        for image in array[start : start + count]:
            try:
                chunk.append(as_uint8(image))
            except (ValueError, TypeError) as error:
                index = start + len(chunk)
                raise ValueError(
                    f"{name}: images are {array.dtype} {shape}; {expected} Image {index}: {error}"
                ) from error
        return torch.stack(chunk)

    channels, *own_size = read(0, 1).shape[1:]
    size = (config.image_size, config.image_size) if config.image_size else tuple(own_size)
    images = torch.empty(shape[0], config.channels or channels, *size, dtype=torch.uint8)
    for start in range(0, shape[0], CHUNK):
        images[start : start + CHUNK] = resize(with_channels(read(start), images.shape[1]), size)
    return images


def resized(dataset: ImageSet, config: DataConfig) -> ImageSet:
    """A set with the size and the channels that the settings ask for; lazy images are resized when they are read."""
    channels, height, width = dataset.image_shape
    size = (config.image_size, config.image_size) if config.image_size else (height, width)
    wanted = (config.channels or channels, *size)
    if wanted == dataset.image_shape:
        return dataset
    images = dataset.images
    if isinstance(images, Tensor):
        parts = [resize(with_channels(chunk, wanted[0]), size) for chunk in images.split(CHUNK)]
        return dataclasses.replace(dataset, images=torch.cat(parts))
    lazy = type(images)(_Resized(images.read, wanted), (len(images), *wanted), threads=images.threads)
    return dataclasses.replace(dataset, images=lazy)


@dataclasses.dataclass(frozen=True)
class _Resized:
    read: collections.abc.Callable[[int], Tensor]
    shape: tuple[int, int, int]

    def __call__(self, index: int) -> Tensor:
        return resize(with_channels(self.read(index)[None], self.shape[0]), self.shape[1:])[0]


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
