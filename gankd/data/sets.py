"""A set of labelled images, whatever it comes from: arrays, files, a synthetic store, a user's `Dataset`.

`images` is a uint8 tensor [N, C, H, W] or something that indexes like one (`LazyImages`), so that the loader, the
generator's training and the synthesis see no difference between data in memory and data on disk.
"""

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import pickle
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from generators.checks import compared_names
from generators.randomness import mix
from generators.settings import nearest


class LazyImages:
    """Images that are read when they are asked for: indexes like a uint8 tensor [N, C, H, W].

    read: index -> uint8 [C, H, W].
    shape: (N, C, H, W).
    threads: how many call `read` at once; with 1 it is called in order, as a user's data set may need it.
    """

    def __init__(self, read: Callable[[int], Tensor], shape: tuple[int, ...], *, threads: int = 8):
        self.read, self.shape, self.threads = read, tuple(shape), threads

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: int | Tensor) -> Tensor:
        if isinstance(indices, int):
            return self.read(indices)
        if not len(indices):
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        if self.threads == 1:
            return torch.stack([self.read(index) for index in indices.tolist()])
        with ThreadPoolExecutor(max_workers=self.threads) as pool:  # decoding releases the interpreter lock
            return torch.stack(list(pool.map(self.read, indices.tolist())))

    def fresh(self, indices: Tensor, key: int) -> Tensor:
        """What a training step looks at; `key` names the step where reading is random (`RandomImages`)."""
        return self[indices]

    def subset(self, indices: Tensor) -> "LazyImages":
        """The images at `indices` (int64 [M]), in that order."""
        shape = (len(indices), *self.shape[1:])
        return type(self)(_Renumbered(self.read, indices.tolist()), shape, threads=self.threads)


class RandomImages(LazyImages):
    """Images that a user's data set changes at random each time it reads one.

    What is drawn from the default random streams of Python, NumPy and torch is a function of (key, index): training steps
    draw afresh, whoever else looks (statistics, evaluation) sees the draw of key 0 every time.
    """

    def __getitem__(self, indices: int | Tensor) -> Tensor:
        if isinstance(indices, int):
            return self.fresh(torch.tensor([indices]), 0)[0]
        return self.fresh(indices, 0)

    def fresh(self, indices: Tensor, key: int) -> Tensor:
        images = [torch.empty(0, *self.shape[1:], dtype=torch.uint8)]
        with kept_randomness():
            for index in indices.tolist():
                seed_everything(mix(key, "read", index))
                images.append(self.read(index)[None])
        return torch.cat(images)


def is_picklable(images: Any) -> bool:
    """Whether images reach worker processes: always by forking, else only if they can be pickled; a warning says if not."""
    if multiprocessing.get_start_method() == "fork":
        return True
    try:
        pickle.dumps(images)
        return True
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        warnings.warn(
            f"images are read by the training process, not by workers: the data set cannot be sent to them ({error}). "
            "Functions and classes at the top level of a module can.",
            stacklevel=3,
        )
        return False


@contextlib.contextmanager
def kept_randomness() -> Iterator[None]:
    """The caller's default random streams, on the CPU, are afterwards where they were."""
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def seed_everything(seed: int) -> None:
    """Set the default random streams of Python, NumPy and torch (on the CPU)."""
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@dataclasses.dataclass(frozen=True)
class _Renumbered:
    """Reads image `positions[index]`: an object and not a closure, so that it reaches worker processes by pickling."""

    read: Callable[[int], Tensor]
    positions: list[int]

    def __call__(self, index: int) -> Tensor:
        return self.read(self.positions[index])


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
    """float16 [N, D]: the generator's pooled features of its images, block after block (see `data.live`)."""
    feature_widths: tuple[int, ...] = ()
    """How wide each block's features are, D in all."""
    contents: Tensor | None = None
    """int64 [N]: 64 bits of a hash of what each image is made from, where it is not its pixels: a file's name, size and time
    of change, or its encoded bytes."""
    is_synthetic: bool = False
    name: str = "data"

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels.")
        if self.groups is not None and self.groups.shape != self.labels.shape:
            raise ValueError(f"{self.name}: {len(self.labels)} labels but groups of shape {tuple(self.groups.shape)}.")
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

    @property
    def is_random(self) -> bool:
        """Whether reading an image draws a random transform of the user's afresh."""
        return isinstance(self.images, RandomImages)

    @functools.cached_property
    def image_hashes(self) -> Tensor:
        """`contents` where the images have them, else hashes of their pixels, int64 [N]; lazy ones are read once for it."""
        if self.contents is not None:
            return self.contents
        chunks = torch.arange(len(self)).split(256)
        return content_hashes(image.numpy().tobytes() for chunk in chunks for image in self.images[chunk].cpu())

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of what the set holds: images, labels, class names and what is stored with them; the
        same for images in memory and images that are read when they are asked for."""
        found = hashlib.sha256(repr((self.image_shape, self.class_names)).encode())
        for values in (self.image_hashes, self.labels, self.teacher_outputs, self.generator_features):
            if values is not None:
                found.update(f"{values.dtype}{tuple(values.shape)}".encode())
                found.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()[:12]

    def subset(self, indices: Tensor) -> "ImageSet":
        """The samples at `indices` (int64 [M]), in that order."""
        images = self.images[indices] if isinstance(self.images, Tensor) else self.images.subset(indices)
        pick = lambda values: None if values is None else values[indices]  # noqa: E731
        return dataclasses.replace(
            self,
            images=images,
            labels=self.labels[indices],
            groups=pick(self.groups),
            teacher_outputs=pick(self.teacher_outputs),
            generator_features=pick(self.generator_features),
            contents=pick(self.contents),
        )

    def without_labels(self, dtype: torch.dtype = torch.int64) -> "ImageSet":
        """The same images, all labelled 0, as nothing that trains on them reads labels."""
        return dataclasses.replace(self, labels=torch.zeros(len(self), dtype=dtype), class_names=None)

    def in_memory(self) -> "ImageSet":
        """The same set with all images read."""
        if isinstance(self.images, Tensor):
            return self
        return dataclasses.replace(self, images=self.images[torch.arange(len(self))])


def content_hashes(contents: Iterable[bytes | memoryview]) -> Tensor:
    """64 bits of a hash of each, int64 [N]: `ImageSet.contents`."""
    hashes = [int.from_bytes(hashlib.blake2b(each, digest_size=8).digest(), "little", signed=True) for each in contents]
    return torch.tensor(hashes, dtype=torch.int64)


def match_classes(dataset: ImageSet, class_names: Sequence[str] | None, whose: str) -> ImageSet:
    """`dataset` with its classes numbered as `class_names` numbers them; as it is where either has no names (or no others
    than the numbers from 0 on, which are given to classes without).

    whose: the other side, for sentences: "the teacher".
    Raises ValueError: a class of the data that `class_names` lacks, or one that they name twice.
    """
    own = dataset.class_names
    if dataset.labels.is_floating_point() or (others := compared_names(own, class_names)) is None:
        return dataset
    own = [name.strip() for name in own]
    numbers = torch.full((len(own),), -1)
    for label in dataset.labels.unique().tolist():
        name = own[label]
        if others.count(name) != 1 or own.count(name) != 1:
            problem = f"not one of {whose}{nearest(name, others)}" if name not in others else f"named twice by {whose}"
            raise ValueError(f"{dataset.name}: class '{name}' is {problem}")
        numbers[label] = others.index(name)
    return dataclasses.replace(dataset, labels=numbers[dataset.labels], class_names=tuple(others))


def scalar_labels(values: Tensor, name: str) -> Tensor:
    """Scalar labels of any type as float32.
    Raises ValueError: one that is not finite, or labels that float32 cannot tell apart."""
    scalars = values.float()
    if not scalars.isfinite().all():
        index = int((~scalars.isfinite()).nonzero()[0])
        raise ValueError(f"{name} has a label that is no finite number of 32 bits: {values[index].item()} at {index}.")
    if len(values):
        values = values.double().sort().values
        extent, rounded = (values[-1] - values[0]).item(), values.float()
        lost = values.diff()[rounded.diff() == 0]  # differences that are gone, rounding errors of 64 bits among them
        if (values - rounded).abs().max() > 1e-4 * extent or (lost > 1e-7 * extent).any():
            raise ValueError(
                f"{name} has labels in [{values[0]:.10g}, {values[-1]:.10g}] that numbers of 32 bits cannot tell "
                "apart: subtract a constant from them, or give them in another unit."
            )
    return scalars
