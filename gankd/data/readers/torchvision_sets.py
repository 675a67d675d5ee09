"""CIFAR-10 and CIFAR-100 as torchvision downloads and checks them."""

import torch

from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.readers.images import array_images
from gankd.data.readers.source import require_kind
from gankd.data.sets import ImageSet


@READERS.register("cifar10")
@READERS.register("cifar100")
def read_cifar(config: DataConfig, kind: Kind, *, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """50,000 train and 10,000 test images, 32x32 in colour (A. Krizhevsky, "Learning Multiple Layers of Features from
    Tiny Images", 2009); `data.root` holds `cifar-10-batches-py` or `cifar-100-python`.

    Raises ValueError: the folder is missing or not whole and `download` is off, or the download failed.
    """
    from torchvision import datasets

    require_kind(config, kind, "classification")
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
