"""Batches are bit for bit what they have been since the commit that these numbers were taken from (45fb562)."""

from __future__ import annotations

import hashlib

import pytest
import torch

from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet, LazyImages

AUGMENTATION = AugmentationConfig(
    crop_padding=2, horizontal_flip=True, rotation=20, cutout=0.25, hue=0.1, blur=(0.1, 2)
)


def make_set(num_samples: int, seed: int, *, is_scalar: bool, is_lazy: bool, is_synthetic: bool) -> ImageSet:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num_samples, 3, 8, 8), generator=random, dtype=torch.uint8)
    labels = torch.rand(num_samples, generator=random) if is_scalar else torch.arange(num_samples) % 5
    stored = LazyImages(images.__getitem__, tuple(images.shape)) if is_lazy else images
    return ImageSet(stored, labels, is_synthetic=is_synthetic)


def digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy())
    return found.hexdigest()[:12]


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize(
    ("kind", "fraction", "sampling", "expected"),
    [
        ("class", None, "uniform", "112a8314f39d"),
        ("class", None, "class_pairs", "e0db643401ff"),
        ("class", 0.5, "uniform", "bbcf158da912"),
        ("class", 0.5, "class_pairs", "63cb3dbd8035"),
        ("class", 1, "uniform", "31e5950c876f"),
        ("class", 1, "class_pairs", "5c367dec6b47"),
        ("scalar", None, "uniform", "5ceece017f4f"),
        ("scalar", 0.5, "uniform", "85fbdbdec8cf"),
        ("scalar", 1, "uniform", "4f4816e47c82"),
    ],
)
def test_twenty_batches(kind, fraction, sampling, expected, is_lazy) -> None:
    form = {"is_scalar": kind == "scalar", "is_lazy": is_lazy}
    sets = make_set(37, 0, **form, is_synthetic=False), make_set(53, 1, **form, is_synthetic=True)
    budget = 0 if is_lazy else 1 << 30
    source = BatchSource(
        *sets, batch_size=16, synthetic_fraction=fraction, seed=3, sampling=sampling, memory_budget=budget, workers=0
    )
    found = []
    for batch in source.stream(2, 22):
        found += [batch.images, batch.labels, batch.indices, batch.is_synthetic]
    assert digest(found) == expected


def test_draws_of_the_augmentation() -> None:
    random = torch.Generator().manual_seed(3)
    draws = Augment(AUGMENTATION).draw(16, (8, 8), device="cpu", generator=random)
    assert digest([draws[name] for name in ("offsets", "flips", "centres")]) == "8868c93b333a"
