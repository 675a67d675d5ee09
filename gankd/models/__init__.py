"""Networks by name.

model = build_model("small_resnet", num_classes=10, in_channels=1, widths=[8, 16])
model = build_model("torchvision:resnet18", num_classes=1)
model = load_checkpoint(build_model("resnet32x4"), "resnet32x4_vanilla/ckpt_epoch_240.pth")
logits, features = forward_with_features(model, images)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from gankd.models.checkpoints import load_checkpoint
from gankd.models.config import ModelConfig
from gankd.models.mobilenet import MobileNetV2
from gankd.models.resnet import ResNet, ResNet50
from gankd.models.shufflenet import ShuffleV1, ShuffleV2
from gankd.models.small_resnet import SmallResNet
from gankd.models.taps import Taps, batch_norms_before_relu, default_taps, feature_shapes, forward_with_features
from gankd.models.vgg import VGG
from gankd.models.wrn import WideResNet
from generators.settings import nearest

__all__ = [
    "MODELS",
    "ModelConfig",
    "SmallResNet",
    "Taps",
    "batch_norms_before_relu",
    "build_model",
    "default_taps",
    "feature_shapes",
    "forward_with_features",
    "load_checkpoint",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_resnet": SmallResNet,
    **{f"resnet{depth}": partial(ResNet, depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
    **{f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in (8, 11, 13, 16, 19)},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
    "ResNet50": ResNet50,
}


def build_model(name: str, num_classes: int = 100, in_channels: int = 3, **options) -> nn.Module:
    """A fresh network with `num_classes` outputs (1 for a scalar target) for images [N, in_channels, H, W].

    Args:
        name: a key of `MODELS`, `torchvision:NAME`, or `timm:NAME` (needs the extra `timm`).
        options: keyword arguments of that network's constructor.

    Raises:
        ValueError: an unknown name or option; a channel count that the network cannot take.
    """
    library, _, model = name.rpartition(":")
    if library == "torchvision":
        return _torchvision_model(model, num_classes, in_channels, options)
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"network '{name}' needs timm: pip install 'gankd[timm]'.") from error
        return timm.create_model(model, num_classes=num_classes, in_chans=in_channels, **options)
    if name not in MODELS:
        raise ValueError(f"unknown network '{name}'{nearest(name, [*MODELS, 'torchvision:NAME', 'timm:NAME'])}")
    builder = MODELS[name]
    known = set(inspect.signature(builder).parameters) - {"num_classes", "in_channels"}
    for option in options:
        if option not in known:
            raise ValueError(
                f"'{option}' is no option of {name}{nearest(option, known) if known else ', which has none.'}"
            )
    return builder(num_classes=num_classes, in_channels=in_channels, **options)


def _torchvision_model(name: str, num_classes: int, in_channels: int, options: dict) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(f"torchvision has no classifier '{name}'{nearest(name, names)}")
    if in_channels != 3:
        raise ValueError(f"torchvision:{name} takes colour images; set data.channels: 3 (grey images are repeated).")
    try:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except TypeError as error:
        raise ValueError(f"torchvision:{name} does not take the options {sorted(options)}: {error}") from error
