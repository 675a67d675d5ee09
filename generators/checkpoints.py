"""Files that are always whole: written to a temporary name and renamed; training state read without unpickling."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, flush that file to disk and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        ValueError: the file is cut off or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is cut off or is no JSON; delete {path.parent} and run the same command again."
        ) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) so that `path` is always whole."""
    with replace_whole(path) as temporary:
        torch.save(state, temporary)


def check_same_run(state: dict[str, Any], run: dict[str, Any], path: Path) -> None:
    """Raise a ValueError unless a checkpoint was written by the run that is described by `run` (flat, plain values)."""
    there = state["run"]
    differing = sorted(key for key in {*there, *run} if there.get(key) != run.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} belongs to another run ({key}: {there.get(key)} there, {run.get(key)} here); delete it, or choose "
            "another directory."
        )


def all_finite(modules: Iterable[nn.Module]) -> bool:
    """Whether every weight and buffer is finite."""
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        ValueError: the file is cut off, or holds objects other than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); delete it to train anew."
        ) from error
