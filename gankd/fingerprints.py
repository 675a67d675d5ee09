"""Short hashes of what a run reads: files, tensors, data sets and networks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from generators.wrapping import WrappedGenerator

if TYPE_CHECKING:
    from gankd.data.sets import ImageSet
    from gankd.models.teacher import Teacher


def digest(data: bytes) -> str:
    """Twelve hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:12]


def file_hash(path: Path | None) -> str | None:
    """Short hash of a file's bytes, or of all files of a folder with their names; None when there is nothing there."""
    if path is None or not Path(path).exists():
        return None
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return digest(json.dumps([[str(file.relative_to(path)), file_hash(file)] for file in files]).encode())
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:12]


def fingerprint(value: Tensor | ImageSet | Teacher | nn.Module) -> str:
    """A short hash of what a tensor, a data set, a teacher or a network is.

    Of a network, weights and buffers and the configuration that a generator carries; of a teacher, also how it reads images
    and what its outputs mean. Of images see `ImageSet.fingerprint`.
    """
    if isinstance(value, Tensor):
        data = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return digest(f"{value.dtype}{tuple(value.shape)}".encode() + data)
    if not isinstance(value, nn.Module) and hasattr(value, "images"):  # an ImageSet
        images = value.images
        if (generator := getattr(images, "generator", None)) is not None:
            return digest(f"{fingerprint(generator)}{generator.feature_names}{images.seed}{images.shape}".encode())
        return value.fingerprint()
    if not isinstance(value, nn.Module):  # a Teacher
        normalization = "".join(name + fingerprint(buffer) for name, buffer in value.normalize.named_buffers())
        return digest(f"{fingerprint(value.module)}{normalization}{value.feature_path}{value.task}".encode())
    config = getattr(value, "config", {})
    config = (
        {key: entry for key, entry in config.items() if not key.startswith("_")} if isinstance(config, Mapping) else {}
    )
    state = sorted((name, entry) for name, entry in value.state_dict().items() if isinstance(entry, Tensor))
    weights = "".join(name + fingerprint(tensor) for name, tensor in state)
    if isinstance(value, WrappedGenerator) and not isinstance(value.source, nn.Module):  # is known by what it draws
        labels = torch.tensor([0] if value.is_class_conditional else value.config.label_range)
        latents = torch.linspace(-1, 1, len(labels) * value.config.latent_dim).view(len(labels), -1)
        weights = fingerprint(value.sample(labels, latents.to(value.device)).mul(8).round())
    structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)) if not config else ""  # layers without weights
    return digest((json.dumps(config, sort_keys=True, default=str) + structure + weights).encode())
