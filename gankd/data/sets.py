"""A set of labelled images, whatever it comes from: arrays, files, a synthetic store, a user's `Dataset`.

`images` is a uint8 tensor [N, C, H, W] or something that indexes like one (`LazyImages`), so that the loader, the
generator's training and the synthesis see no difference between data in memory and data on disk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import Dataset

from generators.images import as_uint8


class LazyImages:
    """Images that are read when they are asked for: indexes like a uint8 tensor [N, C, H, W].

    Args:
        read: index -> uint8 [C, H, W]; called from several threads.
        shape: (N, C, H, W).
    """

    def __init__(self, read: Callable[[int], Tensor], shape: tuple[int, int, int, int]):
        self.read, self.shape = read, tuple(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: int | Tensor) -> Tensor:
        if isinstance(indices, int):
            return self.read(indices)
        with ThreadPoolExecutor(max_workers=8) as pool:  # decoding releases the interpreter lock
            return torch.stack(list(pool.map(self.read, indices.tolist())))


@dataclasses.dataclass(frozen=True)
class _Renumbered:
    """Reads image `positions[index]`: an object and not a closure, so that it reaches worker processes by pickling."""

    read: Callable[[int], Tensor]
    positions: list[int]

    def __call__(self, index: int) -> Tensor:
        return self.read(self.positions[index])


@dataclasses.dataclass(frozen=True)
class _DatasetReader:
    """Reads one image of a user's `Dataset` as uint8 of the expected shape."""

    dataset: Dataset
    shape: tuple[int, int, int]
    name: str

    def __call__(self, index: int) -> Tensor:
        return self.checked(self.dataset[index][0], index)

    def checked(self, image, index: int) -> Tensor:
        try:
            image = as_uint8(image)
        except ValueError as error:
            raise ValueError(f"{self.name}[{index}]: {error}") from error
        if image.shape != self.shape:
            raise ValueError(
                f"{self.name}[{index}] has shape {tuple(image.shape)}, {self.name}[0] has {tuple(self.shape)}: "
                "resize the images to one size in the data set's transform."
            )
        return image


@dataclasses.dataclass(frozen=True)
class ImageSet(Dataset):
    """N images with their labels; as a `Dataset` it yields (uint8 [C, H, W], label)."""

    images: Tensor | LazyImages
    """uint8 [N, C, H, W], or images that index like it and are read, or generated, when they are asked for."""
    labels: Tensor
    """Class ids int64 [N], or scalar targets float32 [N] in the user's units."""
    class_names: tuple[str, ...] | None = None
    groups: Tensor | None = None
    """int64 [N]: samples of one group (one source image, neighbouring frames) never fall into two splits."""
    teacher_outputs: Tensor | None = None
    """float32 [N, K]: what a teacher said of the un-augmented images (stored with synthetic data)."""
    generator_features: Tensor | None = None
    """float16 [N, D]: the generator's pooled features of its images, block after block (see `data.generated`)."""
    feature_widths: tuple[int, ...] = ()
    """How wide each block's features are, D in all."""
    is_synthetic: bool = False
    name: str = "data"

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels.")
        if isinstance(self.images, Tensor) and (self.images.dtype != torch.uint8 or self.images.ndim != 4):
            raise ValueError(
                f"{self.name}: images are {self.images.dtype} {tuple(self.images.shape)}; expected uint8 [N, C, H, W]."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    @property
    def num_bytes(self) -> int:
        """Size of all images as uint8."""
        channels, height, width = self.image_shape
        return len(self) * channels * height * width

    def subset(self, indices: Tensor) -> ImageSet:
        """The samples at `indices` (int64 [M]), in that order."""
        images = self.images
        if isinstance(images, Tensor):
            images = images[indices]
        else:
            images = LazyImages(_Renumbered(images.read, indices.tolist()), (len(indices), *self.image_shape))
        pick = lambda values: None if values is None else values[indices]  # noqa: E731
        return dataclasses.replace(
            self,
            images=images,
            labels=self.labels[indices],
            groups=pick(self.groups),
            teacher_outputs=pick(self.teacher_outputs),
            generator_features=pick(self.generator_features),
        )

    def without_labels(self, dtype: torch.dtype = torch.int64) -> ImageSet:
        """The same images, all labelled 0, as nothing that trains on them reads labels."""
        return dataclasses.replace(self, labels=torch.zeros(len(self), dtype=dtype), class_names=None)

    def in_memory(self) -> ImageSet:
        """The same set with all images read."""
        if isinstance(self.images, Tensor):
            return self
        return dataclasses.replace(self, images=self.images[torch.arange(len(self))])


def as_image_set(dataset: ImageSet | Dataset, name: str = "data", memory_budget: int = 2 << 30) -> ImageSet:
    """Turn a user's map-style `Dataset` of (image, label) into an `ImageSet`.

    Images may be PIL images, uint8 arrays or tensors, or floats in [0, 1]; all of one size. A set that fits into
    `memory_budget` bytes is read once and kept as uint8; a larger one is read on demand (its labels come from
    `dataset.targets` where it has them, from one pass over it otherwise).

    Raises:
        ValueError: an empty set, images of several sizes or of another form, labels that are not one number each.
    """
    if isinstance(dataset, ImageSet):
        return dataset
    if len(dataset) == 0:
        raise ValueError(f"{name}: the data set is empty.")
    read = _DatasetReader(dataset, as_uint8(dataset[0][0]).shape, name)
    labels = getattr(dataset, "targets", None)
    if math.prod(read.shape) * len(dataset) <= memory_budget:
        samples = [dataset[index] for index in range(len(dataset))]  # one pass: an image and its label belong together
        images = torch.stack([read.checked(image, index) for index, (image, _) in enumerate(samples)])
        labels = [label for _, label in samples]
    else:
        images = LazyImages(read, (len(dataset), *read.shape))
        labels = [dataset[index][1] for index in range(len(dataset))] if labels is None else labels
    labels = torch.as_tensor(labels)
    if labels.shape != (len(dataset),):
        raise ValueError(f"{name}: labels have shape {tuple(labels.shape)}; expected one number an image.")
    labels = labels.float() if labels.dtype.is_floating_point else labels.long()
    classes = getattr(dataset, "classes", None)
    return ImageSet(images, labels, class_names=tuple(map(str, classes)) if classes else None, name=name)


def as_unlabelled(images: ImageSet | Tensor | Dataset, name: str = "data", memory_budget: int = 2 << 30) -> ImageSet:
    """Images without labels as an `ImageSet`: a set whose labels do not count, uint8 [N, C, H, W], or a map-style `Dataset`
    of images or of tuples that begin with one.

    Raises:
        ValueError: an empty set, or images as `as_image_set` refuses them.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, Tensor):
        if images.ndim != 4 or not len(images):
            raise ValueError(f"{name}: images have shape {tuple(images.shape)}; expected [N, C, H, W], N above 0.")
        return ImageSet(torch.stack([as_uint8(image) for image in images]), torch.zeros(len(images)).long(), name=name)
    return as_image_set(_Unlabelled(images), name, memory_budget)


@dataclasses.dataclass(frozen=True)
class _Unlabelled(Dataset):
    """A user's data set of images, or of tuples that begin with one, as pairs of an image and the label 0."""

    dataset: Dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        item = self.dataset[index]
        return (item[0] if isinstance(item, tuple | list) else item), 0

    @property
    def targets(self) -> list[int]:
        return [0] * len(self)
