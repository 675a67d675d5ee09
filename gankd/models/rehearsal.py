"""Two images through a copy of a network, as it will be trained, before anything is spent on it.

check_trainable(student, image_shape=(3, 32, 32), num_outputs=10, whose="the student")
with preserve_state(student):
    to_channels_last(distiller, student, image_shape=(3, 32, 32))
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gankd.models.outputs import check_finite, outputs_of
from gankd.models.state import own_tensors


def check_trainable(network: nn.Module, image_shape: tuple[int, int, int], num_outputs: int, whose: str) -> None:
    """One evaluation and one training step's forward and backward of two images through a copy; the network stays as it is.

    Args:
        image_shape: (C, H, W) of what the network takes.
        num_outputs: how many numbers it must answer an image with.
        whose: the network, in sentences: "the student (student.model)".

    Raises:
        ValueError: it cannot be copied, does not take such images or cannot learn from them, its outputs are none, too many,
            too few or not finite.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{whose}, {type(network).__name__}: all parameters are frozen; set requires_grad on some.")
    try:
        with _trial(network, image_shape) as (trial, images):
            with torch.no_grad():
                evaluated = outputs_of(trial(images))
            trained = outputs_of(trial.train()(images))
            trained.float().square().mean().backward()
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        shape = " x ".join(map(str, image_shape))
        raise ValueError(
            f"{whose}, {type(network).__name__}, does not train on images of {shape}: {' '.join(str(error).split())[:300]}"
        ) from error
    for outputs, mode in ((evaluated, "evaluation"), (trained, "training")):
        if outputs.numel() != 2 * num_outputs or len(outputs) != 2:
            raise ValueError(
                f"{whose}, {type(network).__name__}, answers two images with {list(outputs.shape)} in {mode} mode, the task "
                f"needs [2, {num_outputs}]: change its last layer."
            )
        check_finite(outputs, f"{whose}, {type(network).__name__}, in {mode} mode")


def to_channels_last(module: nn.Module, network: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Lay out the 4-D weights of `module` with channels last, which trains faster, where `network` works so.

    A network that flattens its maps by `.view` does not, and one that reads a tensor's memory would answer otherwise: two
    images go through a copy in both layouts, in evaluation and in training mode, before anything is changed.

    Args:
        module: what is laid out: `network` itself, or a distiller around it.
        image_shape: (C, H, W) of what the network takes.

    Returns:
        Whether it was done. `preserve_state` undoes it.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return False
    try:
        with _trial(network, image_shape) as (trial, images):
            with torch.no_grad():
                expected = outputs_of(trial(images))
                _lay_out(trial)
                images = images.contiguous(memory_format=torch.channels_last)
                same = torch.allclose(outputs_of(trial(images)), expected, rtol=1e-3, atol=1e-4)
            outputs_of(trial.requires_grad_(True).train()(images)).float().square().mean().backward()
    except (RuntimeError, TypeError, ValueError):  # what is wrong with it in any layout, `check_trainable` says
        return False
    if same:
        _lay_out(module)
    return same


@contextlib.contextmanager
def _trial(network: nn.Module, image_shape: tuple[int, int, int]) -> Iterator[tuple[nn.Module, Tensor]]:
    """(a copy in evaluation mode, two images); random numbers that are drawn meanwhile do not count."""
    weight = next((each for each in network.parameters() if each.is_floating_point()), torch.empty(0))
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        images = torch.linspace(-1, 1, 2 * image_shape[0] * image_shape[1] * image_shape[2]).view(2, *image_shape)
        yield copy.deepcopy(network).eval(), images.to(weight)


def _lay_out(module: nn.Module) -> None:
    for part in module.modules():
        for _, tensor in own_tensors(part):
            if tensor.ndim == 4:  # not torch's own .to(memory_format=...), which refuses networks with 5-D weights
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
