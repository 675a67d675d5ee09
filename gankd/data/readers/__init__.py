"""Where data comes from: every source by its name, and the way from a source to train, validation and test.

    @READERS.register("my_set")
    def read_my_set(config: DataConfig, kind: Kind, *, year: int = 2020):
        root = config.place()
        return train, test      # each an `ImageSet` or what `as_image_set` takes; test None: it is cut from train

The keyword-only parameters are its own settings, beside the common ones in a YAML: `data: {name: my_set, year: 2021}`. A
class will do as well: its constructor takes the same arguments, and what it makes is a `Dataset` to train on.
"""

import dataclasses
from pathlib import Path

import torch

from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.inputs import as_image_set
from gankd.data.readers import arrays, folders, known_sets, tables  # noqa: F401  they register themselves
from gankd.data.readers.images import encoded_images, find_images, resized
from gankd.data.sets import ImageSet, match_classes, scalar_labels
from gankd.data.splits import Splits, check_classes, few_shot, hold_out

TEST_SEED = 0  # the test split belongs to the data: no run may draw itself another one

__all__ = ["READERS", "Kind", "read", "read_data", "read_images"]


def read_data(config: DataConfig, *, kind: Kind, seed: int) -> Splits:
    """Read a source and divide it.

    In this order: the test part is cut where the source has none (the same for every `seed`), labels outside
    `label_range` are dropped from both parts, validation is cut from train, and `labelled` samples of train are kept.

    kind: what the task makes of the labels.
    seed: draws validation and the labelled samples.
    Raises ValueError: an unknown source, settings that do not fit it, data that is missing or damaged, fewer than two
    classes or test images, or more samples asked than there are; with the key or the file.
    """
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed: {seed} is not between 0 and 2^63; give a smaller number that is not negative.")
    if config.label_range is not None and kind == "classification":
        raise ValueError("data.label_range: classes have no range; remove it or set task.kind: regression.")
    train, test = read(config, kind)
    if test is None:
        train, test = hold_out(train, config.test, seed=TEST_SEED, key="data.test")
    if train.image_shape != test.image_shape:
        raise ValueError(
            f"data.name: {config.name} has images [C, H, W] of {train.image_shape} to train and {test.image_shape} to "
            "test on; set data.image_size and data.channels."
        )
    if kind == "classification" and train.class_names and len(train.class_names) < 2:
        raise ValueError(f"data.name: {train.name} has one class, '{train.class_names[0]}'; telling apart takes two.")
    if config.label_range is not None:
        train, test = _within(train, config.label_range, "train"), _within(test, config.label_range, "test")
    if len(test) < 2:
        raise ValueError(f"data.test: {len(test)} test image of {config.name} measures nothing; at least 2 are needed.")
    if config.validation:
        train, validation = hold_out(train, config.validation, seed=seed, key="data.validation")
    else:
        validation = train.subset(torch.arange(0))
        check_classes(train, train, "data.test")
    pool = train
    if config.labelled is not None:
        train = few_shot(train, config.labelled, seed=seed)
    return Splits(train, validation, test, pool)


def read(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """The samples of a source to train on and its own test split, None where it has none.

    What a plugin's reader returns in another form is turned into an `ImageSet` of the size and channels that are asked
    for, its classes numbered alike in both.
    Raises ValueError: as the source's reader, or labels that are not what the task learns.
    """
    found = READERS.find(config.name)(config, kind, **config.own)
    parts = found if isinstance(found, tuple) else (found, None)
    if len(parts) != 2 or parts[0] is None:
        raise ValueError(f"data.name: {config.name} returned {len(parts)} things; expected (train, test or None).")
    names = (config.name, f"{config.name} (test)")
    train, test = (
        None if part is None else resized(as_image_set(part, name, config.memory_budget << 20), config)
        for part, name in zip(parts, names, strict=True)
    )
    train, test = (None if part is None else _for_kind(part, kind, config.name) for part in (train, test))
    return train, None if test is None else match_classes(test, train.class_names, f"{config.name}'s training part")


def _for_kind(part: ImageSet, kind: Kind, name: str) -> ImageSet:
    if kind == "regression" and not part.labels.is_floating_point() and part.class_names is None:
        return dataclasses.replace(part, labels=scalar_labels(part.labels, part.name))
    if part.labels.is_floating_point() != (kind == "regression"):
        found = "scalars" if part.labels.is_floating_point() else "class ids"
        raise ValueError(f"task.kind: {kind} does not fit data.name: {name}, whose labels are {found}.")
    return part


def read_images(folder: Path, *, image_size: int, channels: int, memory_budget: int) -> ImageSet:
    """All images of a folder and its subfolders, without labels (all 0).

    memory_budget: MiB of images that are decoded at once; beyond, they are read when they are asked for.
    Raises ValueError: no image there, or one that cannot be read.
    """
    files = find_images(folder)
    if not files:
        raise ValueError(f"representation.unlabelled: {folder} holds no images.")
    config = DataConfig(name="image_folder", image_size=image_size, channels=channels, memory_budget=memory_budget)
    images, contents = encoded_images(files, config, name=str(folder))
    return ImageSet(images, torch.zeros(len(files), dtype=torch.int64), contents=contents, name=str(folder))


def _within(dataset: ImageSet, label_range: tuple[float, float], part: str) -> ImageSet:
    smallest, largest = label_range
    kept = ((dataset.labels >= smallest) & (dataset.labels <= largest)).nonzero().flatten()
    if len(kept) == 0:
        raise ValueError(
            f"data.label_range: no {part} label of {dataset.name} lies in [{smallest}, {largest}]; they lie in "
            f"[{dataset.labels.min():g}, {dataset.labels.max():g}]."
        )
    return dataset.subset(kept)
