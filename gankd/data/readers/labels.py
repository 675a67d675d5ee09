"""From the labels of a source to class ids or scalars, as the task asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from gankd.data.config import DataConfig
from gankd.data.readers.checks import Kind


def encode_labels(
    parts: Sequence[numpy.ndarray], config: DataConfig, kind: Kind, *, classes: Sequence[str] | None = None
) -> tuple[list[Tensor], tuple[str, ...] | None]:
    """Labels of all parts of a source (train, and test where it has one) in one code.

    Classification: with `classes` the labels are ids into it; otherwise the distinct values of all parts, sorted (as
    numbers where all are whole numbers), become the ids 0..K-1 and are the class names. Regression: float32.

    Args:
        parts: arrays [N] of numbers or strings.

    Returns:
        Labels of every part, int64 [N] or float32 [N]; the class names, None for scalars.

    Raises:
        ValueError: labels of another shape, fractions as classes, words or class ids as scalars, an id out of
            `classes`, or a scalar that is not finite.
    """
    for part in parts:
        if part.ndim != 1:
            raise ValueError(f"data.name: {config.name} holds labels of shape {part.shape}; expected one an image.")
    if kind == "regression":
        if classes is not None:
            raise ValueError(f"task.kind: regression does not fit data.root: {config.root}: it names classes.")
        return [_scalars(part, config) for part in parts], None
    if any(part.dtype.kind == "f" and (part != numpy.floor(part)).any() for part in parts):
        raise ValueError(f"task.kind: classification does not fit data.root: {config.root}: its labels are fractions.")
    parts = [part.astype(numpy.int64) if part.dtype.kind in "fiub" else part.astype(str) for part in parts]
    if classes is not None:
        for part in parts:
            if part.dtype.kind == "U" or part.min() < 0 or part.max() >= len(classes):
                raise ValueError(f"data.root: {config.root} has a label that is no id of its {len(classes)} classes.")
        return [torch.from_numpy(part) for part in parts], tuple(map(str, classes))
    values = numpy.unique(numpy.concatenate(parts)).tolist()
    if all(_is_whole_number(value) for value in values):
        values.sort(key=int)
    ids = {value: class_id for class_id, value in enumerate(values)}
    return [torch.tensor([ids[value] for value in part.tolist()]) for part in parts], tuple(map(str, values))


def _scalars(part: numpy.ndarray, config: DataConfig) -> Tensor:
    if part.dtype.kind not in "fiub":
        raise ValueError(f"task.kind: regression does not fit data.root: {config.root}: its labels are words.")
    scalars = torch.from_numpy(part.astype(numpy.float32))
    if not scalars.isfinite().all():
        index = int((~scalars.isfinite()).nonzero()[0])
        raise ValueError(f"data.root: {config.root} has a label that is no finite number: {part[index]} at {index}.")
    return scalars


def _is_whole_number(value: str | int) -> bool:
    return isinstance(value, int) or value.removeprefix("-").isdecimal()
