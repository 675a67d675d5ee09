"""The 1,797 handwritten digits that come with scikit-learn: real images without a download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI machine learning repository, 1998.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.readers.images import array_images
from gankd.data.readers.source import require_kind
from gankd.data.sets import ImageSet
from gankd.data.splits import stratified_indices

NUM_TEST = 500
IMAGE_SIZE = 16
LARGEST_ANGLE = 60  # degrees: a 6 turned further starts to read as a 9
FIXED_SEED = 0  # of the test split and of the angles: both belong to the data, not to a run


@READERS.register("digits")
def read_digits(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet]:
    """Ten classes; 1,297 digits to train on, 500 (always the same, every class alike) to test on; 16x16 by default."""
    require_kind(config, kind, "classification")
    images, classes = _digits(config)
    return _split(ImageSet(images, classes, class_names=tuple("0123456789"), name=config.name), classes)


@READERS.register("rotated_digits")
def read_rotated_digits(config: DataConfig, kind: Kind) -> tuple[ImageSet, ImageSet]:
    """The same digits, each turned once by an angle of U(-60, 60) degrees, which is its label; the same split.

    A positive angle turns anticlockwise, as seen on the screen. Every digit appears under one angle only, so that no
    handwriting is in two splits.
    """
    require_kind(config, kind, "regression")
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
