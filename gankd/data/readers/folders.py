"""Sources that lie on disk as image files: class folders, a table, file names, or a list of angles."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy
import torch

from gankd.data.config import DataConfig
from gankd.data.readers.arrays import BLOCK, read_hdf5
from gankd.data.readers.checks import Kind, require_kind, require_root
from gankd.data.readers.images import IMAGE_SUFFIXES, encoded_images, find_images
from gankd.data.readers.labels import encode_labels
from gankd.data.sets import ImageSet
from generators.settings import nearest


def read_image_folder(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """ROOT/train/CLASS/* with ROOT/test or ROOT/val as the test split, or ROOT/CLASS/* without one.

    Raises:
        ValueError: no class folders, one without images, or a test class that train does not have.
    """
    require_kind(config, kind, "classification")
    train, test = _split_folders(require_root(config))
    classes = sorted(folder.name for folder in train.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not classes:
        raise ValueError(f"data.root: {train} has no class folders; expected {train}/CLASS/*.png (or .jpg, ...).")
    if test is None:
        return _class_folders(train, classes, tuple(classes), config), None
    present = [name for name in classes if (test / name).is_dir()]
    for folder in sorted(test.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in classes:
            raise ValueError(f"data.root: {folder} is a class that {train} lacks{nearest(folder.name, classes)}.")
    return _class_folders(train, classes, tuple(classes), config), _class_folders(test, present, tuple(classes), config)


def read_imagenet100(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """The folders of `read_image_folder` that ROOT/classes.txt (or imagenet100.txt) lists, in its order.

    A line of the list is a folder name (WordNet id), optionally a space and the name that reports show.

    Raises:
        ValueError: no list, a class listed twice, or a listed class without a folder or images.
    """
    require_kind(config, kind, "classification")
    root = require_root(config)
    lists = [root / name for name in ("classes.txt", "imagenet100.txt") if (root / name).is_file()]
    if not lists:
        raise ValueError(f"data.root: {root} has no classes.txt; list the class folders in it, one a line.")
    lines = [line.split(maxsplit=1) for line in lists[0].read_text(encoding="utf-8").splitlines() if line.strip()]
    folders = [line[0] for line in lines]
    names = tuple(line[-1].strip() for line in lines)
    if not folders or len(set(folders)) < len(folders):
        raise ValueError(f"data.root: {lists[0]} lists {'a class twice' if folders else 'no class'}; one class a line.")
    train, test = _split_folders(root)
    return (
        _class_folders(train, folders, names, config),
        _class_folders(test, folders, names, config) if test else None,
    )


def read_csv(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """A CSV file, or a folder with labels.csv: a row an image, files relative to the table.

    Columns: `path`, the label (`data.label`, by default `label`), and optionally `split` (train, validation or test;
    validation rows join train, from which validation is cut) and `group`. The task decides what a label is: a class
    by its spelling, or a number.

    Raises:
        ValueError: a missing column, a file that does not exist, an unknown split, or a label that is no number; with
            the line of the table.
    """
    table = require_root(config)
    table = table / "labels.csv" if table.is_dir() else table
    if not table.is_file():
        raise ValueError(f"data.root: {table} does not exist; name a CSV file or a folder with labels.csv.")
    label_column = config.label or "label"
    rows = {"train": [], "test": []}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        for column, key in (("path", "data.root"), (label_column, "data.label")):
            if column not in columns:
                raise ValueError(f"{key}: {table} has no column '{column}'{nearest(column, columns)}")
        for row in reader:
            place = f"{table}, row {reader.line_num}"
            image, label = table.parent / (row["path"] or ""), row[label_column] or ""
            if not image.is_file():
                raise ValueError(f"{place}: {image} does not exist; correct the path or remove the row.")
            split = (row.get("split") or "train").strip().lower()
            if split not in ("train", "validation", "test"):
                raise ValueError(f"{place}: split '{split}' is none of train, validation, test.")
            if kind == "regression":
                label = _finite_number(label, place)
            elif not label:
                raise ValueError(f"{place}: the label is empty; fill it in or remove the row.")
            rows["test" if split == "test" else "train"].append((image, label, row.get("group")))
    if not rows["train"]:
        raise ValueError(f"data.root: {table} has no rows to train on.")
    parts = [part for part in rows.values() if part]
    labels, class_names = encode_labels([numpy.array([row[1] for row in part]) for part in parts], config, kind)
    group_names = sorted({row[2] or "" for part in parts for row in part})
    group_ids = {group: group_id for group_id, group in enumerate(group_names)}
    sets = [
        ImageSet(
            encoded_images([row[0] for row in part], config, name=config.name),
            part_labels,
            class_names=class_names,
            groups=torch.tensor([group_ids[row[2] or ""] for row in part]) if "group" in columns else None,
            name=config.name,
        )
        for part, part_labels in zip(parts, labels, strict=True)
    ]
    return sets[0], sets[1] if len(sets) == 2 else None


def read_utkface(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """Faces with their age in years (Z. Zhang et al., "Age Progression/Regression by Conditional Adversarial
    Autoencoder", CVPR 2017): a folder of AGE_GENDER_RACE_DATE.jpg, or an HDF5 file as `read_hdf5` takes it.

    Raises:
        ValueError: image files whose names do not begin with an age.
    """
    require_kind(config, kind, "regression")
    root = require_root(config)
    if root.is_file():
        return read_hdf5(root, config)
    files = find_images(root)
    ages = [re.match(r"(\d{1,3})_", file.name) for file in files]
    nameless = [file for file, age in zip(files, ages, strict=True) if age is None]
    if nameless or not files:
        raise ValueError(
            f"data.root: {len(nameless)} of {len(files)} images in {root} have no age in their name"
            f"{f', {nameless[0]} first' if nameless else ''}; expected AGE_GENDER_RACE_DATE.jpg."
        )
    labels = torch.tensor([float(age[1]) for age in ages])
    return ImageSet(encoded_images(files, config, name=config.name), labels, name=config.name), None


def read_steering_angle(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """Frames of a drive with the steering wheel's angle in degrees (S. Chen, driving data sets, 2016 and 2018).

    A folder with data.txt, lines `FILE ANGLE` or `FILE ANGLE,DATE`, the images beside it or in `data/`; 32
    neighbouring lines are one group, since frames a fraction of a second apart are all but equal. Or an HDF5 file as
    `read_hdf5` takes it, which has lost the order of the frames and so has no groups.

    Raises:
        ValueError: no data.txt, a line of another form, or a frame that does not exist; with the line.
    """
    require_kind(config, kind, "regression")
    root = require_root(config)
    if root.is_file():
        return read_hdf5(root, config)
    table = root / "data.txt"
    if not table.is_file():
        raise ValueError(f"data.root: {root} has no data.txt with lines of 'FILE ANGLE'.")
    files, angles = [], []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(\S+)\s+([-+]?[\d.]+(?:e[-+]?\d+)?)(?:[,\s].*)?", line.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError(f"{table}, line {number}: '{line.strip()}' is not 'FILE ANGLE'.")
        places = [root / match[1], root / "data" / match[1]]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise ValueError(f"{table}, line {number}: {places[0]} does not exist; correct or remove the line.")
        files.append(file)
        angles.append(float(match[2]))
    if not files:
        raise ValueError(f"data.root: {table} is empty.")
    images = encoded_images(files, config, name=config.name)
    return ImageSet(images, torch.tensor(angles), groups=torch.arange(len(files)) // BLOCK, name=config.name), None


def _finite_number(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{place}: label '{text}' is no finite number; correct it or remove the row.")
    return number


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of the train and of the test split."""
    if not (root / "train").is_dir():
        return root, None
    return root / "train", next((root / name for name in ("test", "val") if (root / name).is_dir()), None)


def _class_folders(folder: Path, classes: list[str], names: tuple[str, ...], config: DataConfig) -> ImageSet:
    """All images of the class folders; the label is the position in `names`, which may name more classes."""
    files, labels = [], []
    for class_id, name in enumerate(classes):
        if not (folder / name).is_dir():
            raise ValueError(f"data.root: class '{name}' has no folder in {folder}.")
        found = find_images(folder / name)
        if not found:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"data.root: class folder {folder / name} has no images ({suffixes}).")
        files += found
        labels += [class_id] * len(found)
    images = encoded_images(files, config, name=str(folder))
    return ImageSet(images, torch.tensor(labels), class_names=names, name=config.name)
