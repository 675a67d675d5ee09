"""From the labels of a source to class ids or scalars, as the task asks."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from gankd.class_names import sorted_class_names
from gankd.data.config import DataConfig, Kind
from gankd.data.sets import scalar_labels


def encode_labels(
    parts: Sequence[numpy.ndarray], config: DataConfig, kind: Kind, *, classes: Sequence[str] | None = None
) -> tuple[list[Tensor], tuple[str, ...] | None]:
    """Labels of all parts of a source (train, and test where it has one) in one code.

    Classification: with `classes` the labels are ids into it; otherwise the distinct values of all parts, in the order of
    `sorted_class_names`, become the ids 0..K-1 and are the class names. Regression: float32.

    parts: arrays [N] or [N, 1] of numbers or strings.

    Returns labels of every part, int64 [N] or float32 [N]; the class names, None for scalars.
    Raises ValueError: labels of another shape, fractions as classes, words or class ids as scalars, an id out of
    `classes`, a missing value, or scalars that are not finite or that float32 cannot tell apart.
    """
    parts = [_one_an_image(part, config) for part in parts]
    if kind == "regression":
        if classes is not None:
            raise ValueError(f"task.kind: regression does not fit data.root: {config.root}: it names classes.")
        if any(part.dtype.kind not in "fiub" for part in parts):
            raise ValueError(f"task.kind: regression does not fit data.root: {config.root}: its labels are words.")
        values = [torch.from_numpy(part.astype(numpy.float64)) for part in parts]
        together = scalar_labels(torch.cat(values), f"data.root: {config.root}")
        return list(together.split([len(part) for part in parts])), None
    for part in parts:
        if part.dtype.kind == "f" and not numpy.isfinite(part).all():
            index = int(numpy.argmin(numpy.isfinite(part)))
            raise ValueError(f"data.root: {config.root} has the label {part[index]} at {index}, which is no class.")
        if part.dtype.kind == "f" and (part != numpy.floor(part)).any():
            raise ValueError(
                f"task.kind: classification does not fit data.root: {config.root}: its labels are fractions."
            )
    parts = [part.astype(numpy.int64) if part.dtype.kind in "fiub" else numpy.char.strip(part) for part in parts]
    if classes is not None:
        for part in parts:
            if part.dtype.kind == "U" or part.min() < 0 or part.max() >= len(classes):
                raise ValueError(f"data.root: {config.root} has a label that is no id of its {len(classes)} classes.")
        return [torch.from_numpy(part) for part in parts], tuple(map(str, classes))
    words = [[str(value) for value in part.tolist()] for part in parts]
    names = sorted_class_names(word for part in words for word in part)
    ids = {name: class_id for class_id, name in enumerate(names)}
    return [torch.tensor([ids[word] for word in part]) for part in words], tuple(names)


def _one_an_image(part: numpy.ndarray, config: DataConfig) -> numpy.ndarray:
    """Numbers, or words of numpy's type `str`, [N]."""
    if part.ndim == 2 and part.shape[1] == 1:
        part = part[:, 0]
    if part.dtype.kind in "SO":  # bytes, and the words of HDF5 files
        words = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in part.ravel().tolist()]
        if all(isinstance(word, str) for word in words):
            part = numpy.array(words, dtype=str).reshape(part.shape)
    if part.ndim != 1:
        is_one_hot = part.ndim == 2 and part.dtype.kind in "fiub" and set(numpy.unique(part).tolist()) <= {0, 1}
        hint = ": store the class ids, labels.argmax(axis=1), in place of one-hot vectors" if is_one_hot else ""
        raise ValueError(f"data.root: {config.root} holds labels of shape {part.shape}; expected one an image{hint}.")
    if part.dtype.kind not in "fiubU":
        raise ValueError(f"data.root: {config.root} holds labels of type {part.dtype}; expected numbers or words.")
    return part
