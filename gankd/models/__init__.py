"""Networks by name.

model = build_model("small_resnet", num_classes=10, in_channels=1, widths=[8, 16])
model = build_model("torchvision:resnet18", num_classes=1)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gankd.models.config import ModelConfig
from gankd.models.small_resnet import SmallResNet
from generators.settings import nearest

__all__ = ["MODELS", "ModelConfig", "SmallResNet", "build_model", "load_weights"]

MODELS: dict[str, Callable[..., nn.Module]] = {"small_resnet": SmallResNet}


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
            raise ValueError(f"'{option}' is no option of {name}{nearest(option, known)}")
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


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict from a .safetensors file or, without unpickling, from a .pt/.pth file; strict.

    A file that wraps the state dict under `state_dict` or `model`, and keys with a leading `module.`, are understood.

    Raises:
        ValueError: the file cannot be read, or its keys or shapes are not those of `model`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the checkpoint's path.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} cannot be read, it may be cut off ({error}): fetch it again, or delete {path.parent} if a run "
                "made it."
            ) from error
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} is cut off, or holds more than tensors and is not unpickled ({type(error).__name__}): "
                "save it again as torch.save(model.state_dict(), path) or as .safetensors."
            ) from error
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ValueError(f"{path} holds no state dict but a {type(state).__name__}; save model.state_dict().")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} does not fit {type(model).__name__}: {summary}") from error
    return model
