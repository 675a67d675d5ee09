"""Sources that lie on disk as one file of arrays: .npz, packs of encoded images, HDF5."""

import zipfile
import zlib
from pathlib import Path

import numpy
import torch

from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.readers.images import Encoded, array_images, encoded_images
from gankd.data.readers.labels import encode_labels
from gankd.data.sets import ImageSet
from generators.settings import nearest

BLOCK = 32  # neighbouring frames of a film that never fall into two splits


@READERS.register("npz")
def read_npz(config: DataConfig, kind: Kind, *, label: str = "labels") -> tuple[ImageSet, ImageSet | None]:
    """`train_images` [N, H, W], [N, H, W, C] or [N, C, H, W] (see `array_images`) with `train_labels` [N], and the same for
    `test`; or `images` and `labels` without a test split. `label` names other labels, `classes` the classes of ids.

    Raises ValueError: no .npz file, or an array that is missing or has another form.
    """
    arrays = _open_npz(config)
    prefixes = [prefix for prefix in ("train_", "test_") if f"{prefix}images" in arrays] or [""]
    names = [f"{prefix}images" for prefix in prefixes]
    images = [array_images(_member(arrays, name, config), config, name=f"{config.root}, {name}") for name in names]
    return _as_sets(arrays, prefixes, [(part, None) for part in images], config, kind, label)


@READERS.register("image_pack")
def read_image_pack(config: DataConfig, kind: Kind, *, label: str = "labels") -> tuple[ImageSet, ImageSet | None]:
    """An .npz of encoded images: for SPLIT in train, test `SPLIT_jpeg_bytes` (uint8, one image file after another),
    `SPLIT_offsets` int64 [N + 1] and `SPLIT_labels` [N] or what `label` names; `classes` for class ids.

    Groups are `SPLIT_source` (crops of one source image) or 32 neighbours by `SPLIT_frame` (a film), where they are.
    Raises ValueError: no .npz file, an array that is missing or has another form, or an image that does not decode.
    """
    arrays = _open_npz(config)
    prefixes = [prefix for prefix in ("train_", "test_") if f"{prefix}jpeg_bytes" in arrays] or ["train_"]
    images = []
    for prefix in prefixes:
        array, offsets = (_member(arrays, f"{prefix}{name}", config) for name in ("jpeg_bytes", "offsets"))
        if array.dtype != numpy.uint8 or array.ndim != 1:
            raise ValueError(
                f"data.root: {prefix}jpeg_bytes in {config.root} is {array.dtype} {array.shape}; expected uint8 [bytes]."
            )
        ends = offsets if offsets.dtype.kind in "iu" and offsets.ndim == 1 else numpy.array([-1])
        if ends[0] < 0 or ends[-1] > len(array) or (numpy.diff(ends.astype(numpy.int64)) < 0).any():
            raise ValueError(
                f"data.root: {prefix}offsets in {config.root} do not divide its {len(array)} bytes; expected whole numbers "
                "[N + 1] that ascend from 0 to their number."
            )
        encoded = Encoded(array, offsets.tolist())
        images.append(encoded_images(encoded, config, name=f"{config.root} {prefix.rstrip('_')}"))
    return _as_sets(arrays, prefixes, images, config, kind, label)


def read_hdf5(root: Path, config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Scalar targets from an HDF5 file in either layout of the UTKFace and Steering Angle files: `images_train`,
    `labels_train`, `images_test` and `labels_test` (X. Ding et al., "Distilling and Transferring Knowledge via
    cGAN-generated Samples for Image Classification and Regression", 2021) or `images` and `labels` without a test
    split (X. Ding et al., "CcGAN", 2020); images uint8 [N, C, H, W].

    Raises ValueError: no HDF5 file, or an array that is missing or has another form.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError("data.name: hdf5 needs h5py: pip install 'gankd[hdf5]'.") from error

    try:
        file = h5py.File(root, "r")
    except OSError as error:
        raise ValueError(f"data.root: {root} is not a readable HDF5 file ({error}).") from error
    with file:
        suffixes = [suffix for suffix in ("_train", "_test") if f"images{suffix}" in file] or [""]
        names = [f"images{suffix}" for suffix in suffixes]  # read from disk piece by piece
        try:
            images = [array_images(_member(file, name, config), config, name=f"{root}, {name}") for name in names]
            values = [_member(file, f"labels{suffix}", config)[:] for suffix in suffixes]
        except OSError as error:
            raise ValueError(f"data.root: {root} is damaged ({error}).") from error
    labels, _ = encode_labels(values, config, "regression")
    sets = [ImageSet(*part, name=config.name) for part in zip(images, labels, strict=True)]
    return sets[0], sets[1] if len(sets) == 2 else None


def _open_npz(config: DataConfig):
    root = config.place()
    try:
        if zipfile.is_zipfile(root):
            return numpy.load(root, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"data.root: {root} is not a whole .npz file ({error}).") from error
    raise ValueError(f"data.root: {root} is not an .npz file, or not a whole one; write it with numpy.savez.")


def _member(arrays, name: str, config: DataConfig, key: str = "data.root"):
    """One array of an .npz file, or one data set of an HDF5 file that is read when it is sliced."""
    if name not in arrays:
        raise ValueError(f"{key}: {config.root} has no array '{name}'{nearest(name, arrays)}")
    try:
        array = arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # objects are not unpickled
        raise ValueError(f"{key}: '{name}' in {config.root} is damaged or no array of numbers or words.") from error
    if not hasattr(array, "dtype") or not array.shape:
        raise ValueError(f"{key}: '{name}' in {config.root} is no array with one entry an image.")
    return array


def _as_sets(arrays, prefixes: list[str], images: list, config: DataConfig, kind: Kind, label: str):
    """(train, test or None) from the images and contents of each part and the labels and groups beside them."""
    values = [_member(arrays, f"{prefix}{label}", config, key="data.label") for prefix in prefixes]
    classes = _member(arrays, "classes", config).tolist() if "classes" in arrays and label == "labels" else None
    labels, class_names = encode_labels(values, config, kind, classes=classes)
    sets = []
    for prefix, (part_images, contents), part_labels in zip(prefixes, images, labels, strict=True):
        groups = None
        if f"{prefix}source" in arrays:
            groups = _member(arrays, f"{prefix}source", config)
            groups = groups if groups.dtype.kind in "iu" else numpy.unique(groups, return_inverse=True)[1]
        elif f"{prefix}frame" in arrays:
            groups = _member(arrays, f"{prefix}frame", config) // BLOCK
        if groups is not None:
            groups = torch.from_numpy(groups).long()
        sets.append(
            ImageSet(
                part_images, part_labels, class_names=class_names, groups=groups, contents=contents, name=config.name
            )
        )
    return sets[0], sets[1] if len(sets) == 2 else None
