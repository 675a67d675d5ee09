"""Sources that lie on disk as image files: class folders, file names, or a list of angles."""

import re
from pathlib import Path

import torch

from gankd.class_names import sorted_class_names
from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.readers.arrays import BLOCK, read_hdf5
from gankd.data.readers.images import encoded_images, find_images, image_suffixes
from gankd.data.readers.tables import read_text
from gankd.data.sets import ImageSet
from generators.settings import nearest


@READERS.register("image_folder")
def read_image_folder(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """ROOT/train/CLASS/* with ROOT/test or ROOT/val as the test split, or ROOT/CLASS/* without one.
    Raises ValueError: no class folders, one without images, or a test class that train does not have."""
    config.require_kind(kind, "classification")
    train, test = _split_folders(config.place())
    classes = sorted_class_names(folder.name for folder in _folders(train))
    if not classes:
        raise ValueError(f"data.root: {train} has no class folders; expected {train}/CLASS/*.png (or .jpg, ...).")
    for folder in _folders(test) if test else ():
        if folder.name not in classes:
            raise ValueError(f"data.root: {folder} is a class that {train} lacks{nearest(folder.name, classes)}.")
    return _both_splits(train, test, classes, classes, config)


@READERS.register("imagenet100")
def read_imagenet100(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """The folders of `read_image_folder` that ROOT/classes.txt (or imagenet100.txt) lists, in its order.

    A line of the list is a folder name (WordNet id), optionally a space and the name that reports show.
    Raises ValueError: no list, a class listed twice, or a listed class without a folder or images.
    """
    config.require_kind(kind, "classification")
    root = config.place()
    lists = [root / name for name in ("classes.txt", "imagenet100.txt") if (root / name).is_file()]
    if not lists:
        raise ValueError(f"data.root: {root} has no classes.txt; list the class folders in it, one a line.")
    lines = [line.split(maxsplit=1) for line in read_text(lists[0]).splitlines() if line.strip()]
    folders = [line[0] for line in lines]
    names = [line[-1].strip() for line in lines]
    if not folders or len(set(folders)) < len(folders):
        raise ValueError(f"data.root: {lists[0]} lists {'a class twice' if folders else 'no class'}; one class a line.")
    return _both_splits(*_split_folders(root), folders, names, config)


@READERS.register("utkface")
def read_utkface(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """Faces with their age in years (Z. Zhang et al., "Age Progression/Regression by Conditional Adversarial
    Autoencoder", CVPR 2017): a folder of AGE_GENDER_RACE_DATE.jpg, or an HDF5 file as `read_hdf5` takes it.

    Raises ValueError: image files whose names do not begin with an age.
    """
    config.require_kind(kind, "regression")
    root = config.place()
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
    images, contents = encoded_images(files, config, name=config.name)
    return ImageSet(images, labels, contents=contents, name=config.name), None


@READERS.register("steering_angle")
def read_steering_angle(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """Frames of a drive with the steering wheel's angle in degrees (S. Chen, driving data sets, 2016 and 2018).

    A folder with data.txt, lines `FILE ANGLE` or `FILE ANGLE,DATE`, the images beside it or in `data/`; 32
    neighbouring lines are one group, since frames a fraction of a second apart are all but equal. Or an HDF5 file as
    `read_hdf5` takes it, which has lost the order of the frames and so has no groups.
    Raises ValueError: no data.txt, a line of another form, or a frame that does not exist; with the line.
    """
    config.require_kind(kind, "regression")
    root = config.place()
    if root.is_file():
        return read_hdf5(root, config)
    table = root / "data.txt"
    if not table.is_file():
        raise ValueError(f"data.root: {root} has no data.txt with lines of 'FILE ANGLE'.")
    files, angles = [], []
    for number, line in enumerate(read_text(table).splitlines(), start=1):
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
    images, contents = encoded_images(files, config, name=config.name)
    groups = torch.arange(len(files)) // BLOCK
    return ImageSet(images, torch.tensor(angles), groups=groups, contents=contents, name=config.name), None


def _folders(folder: Path) -> list[Path]:
    """The folders in it that are not hidden, sorted."""
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of the train and of the test split."""
    if not (root / "train").is_dir():
        return root, None
    return root / "train", next((root / name for name in ("test", "val") if (root / name).is_dir()), None)


def _both_splits(
    train: Path, test: Path | None, folders: list[str], names: list[str], config: DataConfig
) -> tuple[ImageSet, ImageSet | None]:
    """All images of the class folders of both splits; a class has one id in both. Only the test split may lack a class."""
    for name in folders:
        if not (train / name).is_dir():
            raise ValueError(f"data.root: class '{name}' has no folder in {train}.")
    return _class_folders(train, folders, names, config), _class_folders(test, folders, names, config) if test else None


def _class_folders(split: Path, folders: list[str], names: list[str], config: DataConfig) -> ImageSet:
    files, labels = [], []
    for class_id, name in enumerate(folders):
        if not (split / name).is_dir():
            continue
        found = find_images(split / name)
        if not found:
            suffixes = ", ".join(sorted(image_suffixes()))
            raise ValueError(f"data.root: class folder {split / name} has no images ({suffixes}).")
        files += found
        labels += [class_id] * len(found)
    images, contents = encoded_images(files, config, name=str(split))
    return ImageSet(images, torch.tensor(labels), class_names=tuple(names), contents=contents, name=config.name)
