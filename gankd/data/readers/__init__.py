"""Where data comes from: every source by its name, and the way from a source to train, validation and test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gankd.data.config import DataConfig
from gankd.data.readers.arrays import read_image_pack, read_npz
from gankd.data.readers.checks import Kind
from gankd.data.readers.embedded import read_digits, read_rotated_digits
from gankd.data.readers.folders import (
    read_csv,
    read_image_folder,
    read_imagenet100,
    read_steering_angle,
    read_utkface,
)
from gankd.data.readers.images import encoded_images, find_images
from gankd.data.readers.torchvision_sets import read_cifar
from gankd.data.sets import ImageSet
from gankd.data.splits import Splits, few_shot, hold_out
from generators.settings import nearest

READERS: dict[str, Callable[[DataConfig, Kind], tuple[ImageSet, ImageSet | None]]] = {
    "digits": read_digits,
    "rotated_digits": read_rotated_digits,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "image_folder": read_image_folder,
    "imagenet100": read_imagenet100,
    "utkface": read_utkface,
    "steering_angle": read_steering_angle,
    "csv": read_csv,
    "npz": read_npz,
    "image_pack": read_image_pack,
}
"""A reader returns the samples to train on and the source's own test split, None where it has none."""

LABEL_CHOICE = frozenset({"csv", "npz", "image_pack"})
TEST_SEED = 0  # the test split belongs to the data: no run may draw itself another one


def load_data(config: DataConfig, *, kind: Kind, seed: int) -> Splits:
    """Read a source and divide it.

    In this order: the test part is cut where the source has none (the same for every `seed`), labels outside
    `label_range` are dropped from both parts, validation is cut from train, and `labelled` samples of train are kept.

    Args:
        kind: what the task makes of the labels.
        seed: draws validation and the labelled samples.

    Raises:
        ValueError: an unknown source, settings that do not fit it, data that is missing or damaged, or more samples
            asked than there are; with the key or the file.
    """
    if config.name not in READERS:
        raise ValueError(f"data.name: unknown source '{config.name}'{nearest(config.name, READERS)}")
    if config.label is not None and config.name not in LABEL_CHOICE:
        raise ValueError(f"data.label: {config.name} has one label; {', '.join(sorted(LABEL_CHOICE))} offer a choice.")
    if config.download and READERS[config.name] is not read_cifar:
        raise ValueError(f"data.download: {config.name} cannot be downloaded; set data.root to where it lies.")
    if config.label_range is not None and kind == "classification":
        raise ValueError("data.label_range: classes have no range; remove it or set task.kind: regression.")
    train, test = READERS[config.name](config, kind)
    if test is None:
        train, test = hold_out(train, config.test, seed=TEST_SEED, key="data.test")
    if train.image_shape != test.image_shape:
        raise ValueError(
            f"data.name: {config.name} has images [C, H, W] of {train.image_shape} to train and {test.image_shape} to "
            "test on; set data.image_size and data.channels."
        )
    if config.label_range is not None:
        train, test = _within(train, config.label_range, "train"), _within(test, config.label_range, "test")
    train, validation = hold_out(train, config.validation, seed=seed, key="data.validation")
    pool = train
    if config.labelled is not None:
        train = few_shot(train, config.labelled, seed=seed)
    return Splits(train, validation, test, pool)


def read_images(folder: Path, *, image_size: int, channels: int, memory_budget: int) -> ImageSet:
    """All images of a folder and its subfolders, without labels (all 0).

    Args:
        memory_budget: MiB of images that are decoded at once; beyond, they are read when they are asked for.

    Raises:
        ValueError: no image there, or one that cannot be read.
    """
    files = find_images(folder)
    if not files:
        raise ValueError(f"representation.unlabelled: {folder} holds no images.")
    config = DataConfig(name="images", image_size=image_size, channels=channels, memory_budget=memory_budget)
    images = encoded_images(files, config, name=str(folder))
    return ImageSet(images, torch.zeros(len(files), dtype=torch.int64), name=str(folder))


def _within(dataset: ImageSet, label_range: tuple[float, float], part: str) -> ImageSet:
    smallest, largest = label_range
    kept = ((dataset.labels >= smallest) & (dataset.labels <= largest)).nonzero().flatten()
    if len(kept) == 0:
        raise ValueError(
            f"data.label_range: no {part} label of {dataset.name} lies in [{smallest}, {largest}]; they lie in "
            f"[{dataset.labels.min():g}, {dataset.labels.max():g}]."
        )
    return dataset.subset(kept)
