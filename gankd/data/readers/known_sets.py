"""Sets that need no file of the user's own form: the digits that come with scikit-learn, and what torchvision downloads.

digits: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI machine learning repository, 1998: 1,797
    real images without a download
cifar: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.readers.images import array_images
from gankd.data.sets import ImageSet
from gankd.data.splits import stratified_indices

NUM_TEST = 500
IMAGE_SIZE = 16
LARGEST_ANGLE = 60  # degrees: a 6 turned further starts to read as a 9
FIXED_SEED = 0  # of the test split and of the angles: both belong to the data, not to a run


@READERS.register("digits")
def read_digits(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet]:
    """Ten classes; 1,297 digits to train on, 500 (always the same, every class alike) to test on; 16x16 by default."""
    config.require_kind(kind, "classification")
    images, classes = _digits(config)
    return _split(ImageSet(images, classes, class_names=tuple("0123456789"), name=config.name), classes)


@READERS.register("rotated_digits")
def read_rotated_digits(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet]:
    """The same digits, each turned once by an angle of U(-60, 60) degrees, which is its label; the same split.

    A positive angle turns anticlockwise, as seen on the screen. Every digit appears under one angle only, so that no
    handwriting is in two splits.
    """
    config.require_kind(kind, "regression")
    images, classes = _digits(config)
    generator = torch.Generator().manual_seed(FIXED_SEED)
    angles = (2 * torch.rand(len(images), generator=generator) - 1) * LARGEST_ANGLE
    return _split(ImageSet(rotate(images, angles), angles, name=config.name), classes)


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Turn each of uint8 [N, C, H, W] about its centre by its angle [N], degrees, anticlockwise; corners are black."""
    cosine, sine = torch.cos(angles * math.pi / 180), torch.sin(angles * math.pi / 180)
    zero = torch.zeros_like(cosine)
    # from a pixel of the result back to the source: a clockwise turn, in coordinates whose y axis points down
    backward = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(backward, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)


def _digits(config: DataConfig) -> tuple[Tensor, Tensor]:
    """uint8 [1797, C, H, W], 0 black and 255 full ink, and the classes int64 [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")  # 8x8 counts in 0..16
    sized = config if config.image_size else config.replace(image_size=IMAGE_SIZE)
    return array_images(pixels, sized, name=config.name), torch.from_numpy(digits.target).long()


def _split(dataset: ImageSet, classes: Tensor) -> tuple[ImageSet, ImageSet]:
    train, test = stratified_indices(classes, NUM_TEST, seed=FIXED_SEED)
    return dataset.subset(train), dataset.subset(test)


@READERS.register("cifar10")
@READERS.register("cifar100")
def read_cifar(config: DataConfig, kind: Kind, *, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """50,000 train and 10,000 test images, 32x32 in colour; `data.root` holds `cifar-10-batches-py` or `cifar-100-python`.
    Raises ValueError: the folder is missing or not whole and `download` is off, or the download failed."""
    from torchvision import datasets

    config.require_kind(kind, "classification")
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    if config.root is None:
        raise ValueError(f"data.root: set it to the folder that holds, or with data.download will hold, {config.name}.")
    splits = []
    for is_train in (True, False):
        try:
            split = source(config.root.expanduser(), train=is_train, download=download)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"data.root: {config.root} has no complete folder {source.base_folder} ({error}): put it there or set "
                "data.download: true."
            ) from error
        images = array_images(split.data, config, name=config.name)
        splits.append(ImageSet(images, torch.tensor(split.targets), class_names=tuple(split.classes), name=config.name))
    return splits[0], splits[1]
