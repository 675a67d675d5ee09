"""Weights from files: our own, and those that the CIFAR distillation repositories write.

model = load_checkpoint(build_model("resnet32x4"), "resnet32x4_vanilla/ckpt_epoch_240.pth")
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load weights from a .safetensors file or, without unpickling, from a .pt/.pth file; strict; returns the model.

    Understood are a bare state dict, one under `state_dict` or `model` (beside epoch, optimiser, accuracy and an
    argparse.Namespace of options), keys with a leading `module.`, and a distiller's weights, of which the student's are
    taken. Files from before torch 0.4.1 lack `num_batches_tracked`, which may be absent.

    Raises:
        ValueError: the file cannot be read, or its keys or shapes are not those of `model`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the checkpoint's path.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no state dict but a {type(state).__name__}; save model.state_dict().")
    try:
        model.load_state_dict(_own_part(state, model))  # a dictionary without versions: num_batches_tracked may lack
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} does not fit {getattr(model, 'name', type(model).__name__)}: {summary}") from error
    return model


def _own_part(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """What a data-parallel wrapper, and a distiller around a student and a teacher, have put around the model's keys."""
    own = model.state_dict()
    if not any(key.startswith("module.") for key in own):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("student.") for key in own) and any(key.startswith("student.") for key in state):
        state = {key.removeprefix("student."): state[key] for key in state if key.startswith("student.")}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read, it may be cut off ({error}): fetch it again, or delete {path.parent} if a run "
            "made it."
        ) from error


def _read_pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options beside the weights; inert
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is cut off, or holds more than tensors and is not unpickled ({type(error).__name__}): "
            "save it again as torch.save(model.state_dict(), path) or as .safetensors."
        ) from error
