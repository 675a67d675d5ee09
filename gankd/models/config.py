"""What the user says about a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from generators.settings import Settings


class ModelConfig(Settings):
    """A network by name."""

    name: str = "small_resnet"
    """small_resnet, a network of the CIFAR literature (resnet8x4, wrn_16_2, vgg8, MobileNetV2, ...), `torchvision:NAME` for
    any classifier of torchvision, or `timm:NAME`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the network's builder, e.g. {widths: [8, 16], stem_stride: 2}."""
    checkpoint: Path | None = None
    """Weights to start from: a .safetensors file, or a .pt/.pth file (read without unpickling) with a state dict or in
    one of the forms of RepDistiller, mdistiller and CRD."""
