"""What a user hands over as data, in any usual form, as an `ImageSet`: the one adapter for inputs.

A set that fits into the memory budget is read once, in order, by one thread; a larger one is read in order by one thread
when its images are asked for, or by the workers of the training. Both ways give the same images and labels.

Random transforms are noticed (two readings differ, or a default random stream moved on). Such a set is never kept in
memory: every training step draws afresh, as a function of (seed, step, sample).
"""

import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils import data as torch_data

from gankd.class_names import sorted_class_names
from gankd.data.sets import ImageSet, LazyImages, RandomImages, kept_randomness, scalar_labels
from generators.images import as_uint8

IMAGE_KEYS = ("image", "img", "pixel_values", "images")
LABEL_KEYS = ("label", "labels", "target")
GIBIBYTE = 1 << 30
NUM_TRIED = 8  # samples that are read several times to notice random transforms
NUM_VERIFIED = 64  # labels of a large set's `targets` that are compared with those that come with the images


def as_image_set(dataset: Any, name: str = "data", memory_budget: int = 2 * GIBIBYTE) -> ImageSet:
    """Turn labelled images in any usual form into an `ImageSet`.

    Forms: an `ImageSet`; a map-style data set, or a list, of (image, label) or of dictionaries (`image`, `img` or
    `pixel_values` with `label` or `labels`, as Hugging Face has them); a pair (images, labels) of arrays or tensors; a
    `DataLoader` over such a data set; an iterable data set that ends and fits into the budget, which is read once.

    Images: as `generators.images.as_uint8` takes them, all of one size. Labels: class ids, words (numbered as
    `sorted_class_names` does, or as `classes` says), or scalars as floats; [1]-shaped ones count as numbers. Class names are
    the data set's `classes`, or its Hugging Face features.

    name: of the set, for sentences.
    memory_budget: bytes of uint8 images that are kept in memory.
    Raises ValueError: an empty set, images of several sizes or of another form, labels that are not one number or word
    each, random transforms that cannot be repeated; with the number of the sample.
    """
    return _read(dataset, name, memory_budget, is_labelled=True)


def as_unlabelled(images: Any, name: str = "data", memory_budget: int = 2 * GIBIBYTE) -> ImageSet:
    """Images without labels as an `ImageSet` whose labels are 0: what `as_image_set` takes, the labels unread, or an array
    of images, or a data set of images or of tuples that begin with one.

    Raises ValueError: an empty set, or images as `as_image_set` refuses them.
    """
    return _read(images, name, memory_budget, is_labelled=False)


def _read(dataset: Any, name: str, memory_budget: int, *, is_labelled: bool) -> ImageSet:
    if isinstance(dataset, ImageSet):
        if dataset.labels.dtype != torch.float64:
            return dataset
        return dataclasses.replace(dataset, labels=scalar_labels(dataset.labels, dataset.name))
    with kept_randomness():
        samples = _Samples(_indexable(dataset, name, memory_budget, is_labelled), name, is_labelled)
        if not len(samples.dataset):
            raise ValueError(f"{name}: the data set is empty.")
        samples = dataclasses.replace(samples, shape=tuple(samples.sample(0)[0].shape))
        shape = (len(samples.dataset), *samples.shape)
        is_random = _draws_at_random(samples)
        if is_random or math.prod(shape) > memory_budget:
            images = (RandomImages if is_random else LazyImages)(samples, shape, threads=1)
            labels = samples.all_labels()
        else:  # one pass: an image and its label belong together
            images, labels = torch.empty(shape, dtype=torch.uint8), []
            for index in range(len(images)):
                images[index], label = samples.sample(index)
                labels.append(label)
    labels, class_names = _encoded(labels, _class_names(dataset, name), name)
    return ImageSet(images, labels, class_names=class_names, name=name)


@dataclasses.dataclass(frozen=True)
class _Arrays(torch_data.Dataset):
    """A pair (images, labels) of arrays, tensors or lists; labels None: images alone."""

    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return self.images[index], 0 if self.labels is None else self.labels[index]


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Reads samples of a map-style data set; called, its images alone. It reaches worker processes by pickling."""

    dataset: Any
    name: str
    is_labelled: bool
    shape: tuple[int, ...] | None = None
    """(C, H, W) that every image has to have; None: any."""

    def __call__(self, index: int) -> Tensor:
        return self.sample(index)[0]

    def sample(self, index: int) -> tuple[Tensor, int | float | str]:
        """An image, uint8 [C, H, W], and its label (0 where labels are not read)."""
        where = f"{self.name}[{index}]"
        image, label = _image_and_label(self.dataset[index], where, self.is_labelled)
        if self.shape is not None and image.shape != self.shape:
            same_size = image.shape[1:] == self.shape[1:]
            remedy = (
                'convert the images to one mode (.convert("RGB"))' if same_size else "resize the images to one size"
            )
            raise ValueError(
                f"{where} has shape {tuple(image.shape)}, {self.name}[0] has {self.shape}: "
                f"{remedy} in the data set's transform."
            )
        return image, _number_or_word(label, where) if self.is_labelled else 0

    def all_labels(self) -> list:
        """The labels of all samples: the data set's `targets` where they are those that come with the images, else from one
        pass over it."""
        size = len(self.dataset)
        if not self.is_labelled:
            return [0] * size
        targets = getattr(self.dataset, "targets", None)
        if targets is not None and len(targets) == size and getattr(self.dataset, "target_transform", None) is None:
            tried = sorted({index * (size - 1) // NUM_VERIFIED for index in range(NUM_VERIFIED + 1)})
            labels = [_number_or_word(target, f"{self.name}.targets") for target in targets]
            if all(self.sample(index)[1] == labels[index] for index in tried):
                return labels
        return [self.sample(index)[1] for index in range(size)]


def _indexable(dataset: Any, name: str, memory_budget: int, is_labelled: bool) -> Any:
    """What gives one sample for an index and has a length."""
    if isinstance(dataset, torch_data.DataLoader):
        sampler = dataset.sampler
        if not isinstance(
            sampler, torch_data.SequentialSampler | torch_data.RandomSampler | torch_data.DistributedSampler
        ) and not isinstance(dataset.dataset, torch_data.IterableDataset):
            raise ValueError(
                f"{name} is a DataLoader with a {type(sampler).__name__}, which may leave samples out: give the data set "
                "itself, or a torch.utils.data.Subset of it."
            )
        dataset = dataset.dataset  # the training makes batches itself
    if isinstance(dataset, Mapping):
        raise ValueError(f"{name} is a dictionary with keys {', '.join(map(str, dataset))}: give one of its values.")
    if _is_array(dataset):
        if is_labelled:
            raise ValueError(f"{name} is an array of images without labels: give the pair (images, labels).")
        if dataset.ndim != 4 or not len(dataset):
            raise ValueError(f"{name}: images have shape {tuple(dataset.shape)}; expected [N, C, H, W], N above 0.")
        return _Arrays(dataset, None)
    if isinstance(dataset, tuple | list) and len(dataset) == 2 and _is_array(dataset[0]) and dataset[0].ndim >= 3:
        images, labels = dataset
        if isinstance(dataset, tuple) or not isinstance(labels, Tensor) or labels.ndim < 3:
            if not hasattr(labels, "__len__") or len(images) != len(labels):
                raise ValueError(f"{name}: {len(images)} images but {getattr(labels, 'shape', labels)} labels.")
            return _Arrays(images, labels)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return dataset
    if hasattr(dataset, "__iter__"):
        return _read_once(dataset, name, memory_budget, is_labelled)
    raise ValueError(
        f"{name} is a {type(dataset).__name__}; expected a data set of (image, label), or a pair (images, labels) of arrays."
    )


def _read_once(dataset: Any, name: str, memory_budget: int, is_labelled: bool) -> list:
    """The samples of an iterable that ends before the budget does."""
    samples, size = [], 0
    for item in dataset:
        image, label = _image_and_label(item, f"{name}, sample {len(samples)}", is_labelled)
        size += image.numel()
        if size > memory_budget:
            raise ValueError(
                f"{name} has no index and is larger than the memory budget of {memory_budget >> 20} MiB, or endless: give a "
                "map-style data set (with __len__ and __getitem__), or a part of it."
            )
        samples.append((image, label))
    return samples


def _image_and_label(item: Any, where: str, is_labelled: bool) -> tuple[Tensor, Any]:
    """An image, uint8 [C, H, W], and its label as they are in one item of a data set."""
    image, label = _pair(item, where, is_labelled)
    try:
        return as_uint8(image), label
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _pair(item: Any, where: str, is_labelled: bool) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        found = [next((key for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if found[0] is None or (found[1] is None and is_labelled):
            raise ValueError(
                f"{where} has the keys {', '.join(map(str, item))}; expected an image as {', '.join(IMAGE_KEYS[:3])} and a "
                f"label as {' or '.join(LABEL_KEYS[:2])}: rename them, or give pairs (image, label)."
            )
        return item[found[0]], item.get(found[1])
    if isinstance(item, tuple | list):
        if len(item) >= 2 or (item and not is_labelled):
            return item[0], item[1] if len(item) > 1 else None
    elif not is_labelled:
        return item, None
    raise ValueError(f"{where} is {type(item).__name__} without a label; expected (image, label) or a dictionary.")


def _number_or_word(label: Any, where: str) -> int | float | str:
    """One label as Python has it."""
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, bytes):
        return label.decode(errors="replace").strip()
    if label is None:
        raise ValueError(f"{where} has no label (None): leave such samples out.")
    values = numpy.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    if values.size != 1 or values.dtype.kind not in "biufU":
        is_one_hot = (
            values.dtype.kind in "biuf" and values.size > 1 and set(values.flat) == {0, 1} and values.sum() == 1
        )
        raise ValueError(
            f"{where} has a label of shape {values.shape} and type {values.dtype}; expected one number or word an image"
            f"{': give the class id, label.argmax(), in place of the one-hot vector' if is_one_hot else ''}."
        )
    value = values.item()
    return value.strip() if isinstance(value, str) else value


def _class_names(dataset: Any, name: str) -> tuple[str, ...] | None:
    while isinstance(dataset, torch_data.DataLoader | torch_data.Subset):
        dataset = dataset.dataset
    if isinstance(dataset, torch_data.ConcatDataset):
        names = {_class_names(part, name) for part in dataset.datasets}
        if len(names) > 1:
            found = "; ".join(", ".join(each or ["none"]) for each in sorted(names, key=str))
            raise ValueError(
                f"{name} joins data sets of other classes ({found}), whose ids mean different things: number them alike."
            )
        return names.pop()
    classes = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)  # Hugging Face
    if classes is None and isinstance(features, Mapping):
        key = next((key for key in LABEL_KEYS if key in features), None)
        classes = getattr(features.get(key), "names", None)
    if isinstance(classes, int):
        classes = range(classes)
    if isinstance(classes, Mapping):  # name -> id
        classes = sorted(classes, key=classes.get)
    if classes is None or isinstance(classes, str) or not hasattr(classes, "__iter__"):
        return None
    return tuple(str(each).strip() for each in classes) or None


def _encoded(labels: list, names: tuple[str, ...] | None, name: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as class ids int64 [N] or scalars float32 [N], and the names of the classes."""
    words = sum(isinstance(label, str) for label in labels)
    if words == len(labels):
        names = names if names and set(labels) <= set(names) else tuple(sorted_class_names(labels))
        ids = {word: number for number, word in enumerate(names)}
        return torch.tensor([ids[label] for label in labels]), names
    if words:
        index = next(index for index, label in enumerate(labels) if isinstance(label, str))
        raise ValueError(
            f"{name}[{index}] has the word '{labels[index]}' as its label, others have numbers: give one kind."
        )
    if any(isinstance(label, float) for label in labels):
        return scalar_labels(torch.tensor(labels, dtype=torch.float64), name), names
    return torch.tensor([int(label) for label in labels]), names


def _draws_at_random(samples: _Samples) -> bool:
    """Whether reading an image twice gives two images, or moves a default random stream on.
    Raises ValueError: what is drawn does not follow from these streams, so that no run could be repeated."""
    size = len(samples.dataset)
    tried = sorted({index * (size - 1) // NUM_TRIED for index in range(NUM_TRIED + 1)})
    states = _random_states()
    first = [samples(index) for index in tried]
    if _random_states() == states and all(map(torch.equal, first, map(samples, tried))):
        return False
    images = RandomImages(samples, (size, *first[0].shape), threads=1)
    for index in tried:
        if not torch.equal(images[index], images[index]):
            raise ValueError(
                f"{samples.name}[{index}] is another image each time it is read, by a random generator of its own, so that "
                "no run could be repeated: draw from torch's, NumPy's or Python's default generator, or leave the "
                "random transform out and set `augmentation`."
            )
    return True


def _random_states() -> tuple:
    numpy_state = numpy.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2], torch.get_rng_state().numpy().tobytes()


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | numpy.ndarray)
