"""What a user gives to train on, as images and labels: tensors, arrays, or a data set of samples in any usual form."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from generators.images import Images, as_uint8

IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values", "images"), ("label", "labels", "target")


def read_inputs(images: Any, labels: Any = None) -> tuple[Images, Tensor]:
    """Images uint8 [N, C, H, W] (or what reads them when indexed) and labels [N].

    images: with `labels`, a tensor, an array or what indexes like one; without, a map-style data set of (image, label) or of
    dictionaries, or one with attributes `images` and `labels`. labels: numbers [N] or [N, 1].
    Raises ValueError: something that cannot be indexed, samples without a label, images of several sizes or no bytes,
    labels that are no numbers or not as many as the images.
    """
    if labels is None and hasattr(images, "images") and hasattr(images, "labels"):
        images, labels = images.images, images.labels
    if labels is None:
        images, labels = read_samples(images)
    if hasattr(images, "__array__") and not isinstance(images, Tensor):
        images = torch.as_tensor(images)
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()  # channels last, as arrays often have them
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels are no numbers ({error}); give class ids from 0 on, or scalars.") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.flatten()
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected one number an image, [N].")
    if not (labels.dtype.is_floating_point or labels.dtype == torch.int64):
        labels = labels.long()
    if images.shape[0] != len(labels):
        raise ValueError(f"there are {images.shape[0]} images but {len(labels)} labels.")
    first = images[torch.arange(min(1, len(labels)))]
    if first.dtype != torch.uint8 or first.ndim != 4:
        raise ValueError(f"images are {first.dtype} {tuple(images.shape)}; expected uint8 [N, C, H, W] in 0..255.")
    return images, labels


def read_samples(dataset: Any) -> tuple[Tensor, list]:
    """The images and labels of a data set, read once, in order."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"a {type(dataset).__name__} cannot be indexed; give a map-style data set (of a DataLoader: its .dataset), or "
            "images and labels."
        )
    images, labels = [], []
    for index in range(len(dataset)):
        image, label = image_and_label(dataset[index], index)
        images.append(as_uint8(image))
        labels.append(label.item() if isinstance(label, Tensor) and label.numel() == 1 else label)
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"image {index} has shape {tuple(images[-1].shape)}, image 0 has {tuple(images[0].shape)}: resize them to "
                "one size in the data set's transform."
            )
    if not images:
        raise ValueError("the data set is empty.")
    return torch.stack(images), labels


def image_and_label(sample: Any, index: int) -> tuple[Any, Any]:
    """The two of a tuple (image, label, ...) or of a dictionary under the usual keys."""
    if isinstance(sample, Mapping):
        image = next((sample[key] for key in IMAGE_KEYS if key in sample), None)
        label = next((sample[key] for key in LABEL_KEYS if key in sample), None)
        if image is not None and label is not None:
            return image, label
        found = f"a dictionary of {', '.join(map(str, sample))}"
    elif isinstance(sample, (tuple, list)) and len(sample) >= 2:
        return sample[0], sample[1]
    else:
        found = f"a {type(sample).__name__}"
    raise ValueError(
        f"sample {index} is {found}; expected (image, label), or a dictionary with {IMAGE_KEYS[0]} and {LABEL_KEYS[0]}."
    )
