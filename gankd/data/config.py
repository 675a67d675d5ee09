"""What the user says about the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from generators.settings import Count, Positive, Settings


class DataConfig(Settings):
    """Which images, from where, and how they are split. The test split is read once, for the report."""

    name: str
    """The source: digits, rotated_digits, cifar10, cifar100, image_folder, imagenet100, utkface, steering_angle,
    csv, npz or image_pack."""
    root: Path | None = None
    """The local folder or file that holds the data; the bundled digits need none."""
    download: bool = False
    """Let torchvision download CIFAR-10/100 into `root`."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Height and width in pixels; images of another size are resized. Null keeps the source's size."""
    channels: Literal[1, 3] | None = None
    """Grey (1) or colour (3); null keeps the source's."""
    labelled: Count | None = None
    """Few-shot: keep this many training samples (the same number of every class); null keeps all."""
    validation: Positive = 0.1
    """Cut from train, before `labelled` is applied: a share below 1, a number of samples from 1."""
    test: Positive = 0.2
    """Cut from the whole where the source has no test split of its own: a share below 1, a number from 1."""
    label: str | None = None
    """Which label of the source: a CSV column (default `label`), or the array `SPLIT_<label>` of an .npz pack."""
    label_range: tuple[float, float] | None = None
    """Keep only the samples whose scalar label lies in [min, max]."""
    memory_budget: Annotated[int, Field(ge=0)] = 2048
    """MiB of images that may stay on the device; a larger set is read by `workers` while training."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that read images of a set beyond `memory_budget`."""
