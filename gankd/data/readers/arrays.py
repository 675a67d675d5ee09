"""Sources that lie on disk as one file of arrays: .npz, packs of encoded images, HDF5."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy
import torch

from gankd.data.config import DataConfig
from gankd.data.readers.checks import Kind, require_root
from gankd.data.readers.images import array_images, encoded_images
from gankd.data.readers.labels import encode_labels
from gankd.data.sets import ImageSet
from generators.settings import nearest

BLOCK = 32  # neighbouring frames of a film that never fall into two splits


def read_npz(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """`train_images` uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with `train_labels` [N], and the same for `test`;
    or `images` and `labels` without a test split. `data.label` names other labels, `classes` the classes of ids.

    Raises:
        ValueError: no .npz file, or an array that is missing or has another form.
    """
    arrays = _open_npz(config)
    prefixes = [prefix for prefix in ("train_", "test_") if f"{prefix}images" in arrays] or [""]
    images = [array_images(_member(arrays, f"{prefix}images", config), config, name=config.name) for prefix in prefixes]
    return _as_sets(arrays, prefixes, images, config, kind)


def read_image_pack(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet | None]:
    """An .npz of encoded images: for SPLIT in train, test `SPLIT_jpeg_bytes` (uint8, one image file after another),
    `SPLIT_offsets` int64 [N + 1] and `SPLIT_labels` [N] or what `data.label` names; `classes` for class ids.

    Groups are `SPLIT_source` (crops of one source image) or 32 neighbours by `SPLIT_frame` (a film), where they are.

    Raises:
        ValueError: no .npz file, an array that is missing, or an image that does not decode.
    """
    arrays = _open_npz(config)
    prefixes = [prefix for prefix in ("train_", "test_") if f"{prefix}jpeg_bytes" in arrays] or ["train_"]
    images = []
    for prefix in prefixes:
        encoded = memoryview(_member(arrays, f"{prefix}jpeg_bytes", config))
        offsets = _member(arrays, f"{prefix}offsets", config).tolist()
        files = [encoded[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
        images.append(encoded_images(files, config, name=f"{config.root} {prefix.rstrip('_')}"))
    return _as_sets(arrays, prefixes, images, config, kind)


def read_hdf5(root: Path, config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Scalar targets from an HDF5 file in either layout of the UTKFace and Steering Angle files: `images_train`,
    `labels_train`, `images_test` and `labels_test` (X. Ding et al., "Distilling and Transferring Knowledge via
    cGAN-generated Samples for Image Classification and Regression", 2021) or `images` and `labels` without a test
    split (X. Ding et al., "CcGAN", 2020); images uint8 [N, C, H, W].

    Raises:
        ValueError: no HDF5 file, or an array that is missing or has another form.
    """
    import h5py

    try:
        file = h5py.File(root, "r")
    except OSError as error:
        raise ValueError(f"data.root: {root} is not a readable HDF5 file ({error}).") from error
    with file:
        suffixes = [suffix for suffix in ("_train", "_test") if f"images{suffix}" in file] or [""]
        arrays = [_member(file, f"images{suffix}", config) for suffix in suffixes]
        images = [array_images(array, config, name=config.name) for array in arrays]  # read from disk piece by piece
        values = [_member(file, f"labels{suffix}", config)[:] for suffix in suffixes]
    labels, _ = encode_labels(values, config, "regression")
    sets = [ImageSet(*part, name=config.name) for part in zip(images, labels, strict=True)]
    return sets[0], sets[1] if len(sets) == 2 else None


def _open_npz(config: DataConfig):
    root = require_root(config)
    if not zipfile.is_zipfile(root):
        raise ValueError(f"data.root: {root} is not an .npz file, or not a whole one; write it with numpy.savez.")
    return numpy.load(root, allow_pickle=False)


def _member(arrays, name: str, config: DataConfig, key: str = "data.root"):
    """One array of an .npz file, or one data set of an HDF5 file that is read when it is sliced."""
    if name not in arrays:
        raise ValueError(f"{key}: {config.root} has no array '{name}'{nearest(name, arrays)}")
    try:
        return arrays[name]
    except (ValueError, OSError, zipfile.BadZipFile) as error:  # Python objects, which only unpickling would restore
        raise ValueError(f"{key}: '{name}' in {config.root} is damaged or no array of numbers or words.") from error


def _as_sets(arrays, prefixes: list[str], images: list, config: DataConfig, kind: Kind):
    """(train, test or None) from the images of each part and the labels and groups beside them."""
    label = config.label or "labels"
    values = [_member(arrays, f"{prefix}{label}", config, key="data.label") for prefix in prefixes]
    classes = arrays["classes"].tolist() if "classes" in arrays and label == "labels" else None
    labels, class_names = encode_labels(values, config, kind, classes=classes)
    sets = []
    for prefix, part_images, part_labels in zip(prefixes, images, labels, strict=True):
        groups = None
        if f"{prefix}source" in arrays:
            groups = torch.from_numpy(arrays[f"{prefix}source"]).long()
        elif f"{prefix}frame" in arrays:
            groups = torch.from_numpy(arrays[f"{prefix}frame"]).long() // BLOCK
        sets.append(ImageSet(part_images, part_labels, class_names=class_names, groups=groups, name=config.name))
    return sets[0], sets[1] if len(sets) == 2 else None
