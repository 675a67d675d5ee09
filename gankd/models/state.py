"""What a user lends comes back as it was: a network's modes, flags and layout.

with preserve_state(network):
    network.to("cuda", memory_format=torch.channels_last).eval().requires_grad_(False)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gankd.models.outputs import outputs_of


@contextlib.contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Afterwards, also after an exception: the mode of every submodule, what is trainable, and where and how each tensor
    lies (device, dtype, memory format) are as they were. The tensors' values are what they have become meanwhile.
    """
    modes = [(part, part.training) for part in module.modules()]  # some may be frozen in evaluation mode
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    layouts = [
        (part, name, tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        for part in module.modules()
        for name, tensor in _own_tensors(part)
    ]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, name, device, dtype, shape, stride in layouts:
            tensor = part._parameters.get(name, part._buffers.get(name))
            if tensor is None or tensor.shape != shape:  # replaced meanwhile, on purpose
                continue
            if (tensor.device, tensor.dtype, tensor.stride()) != (device, dtype, stride):
                as_before = torch.empty_strided(shape, stride, device=device, dtype=dtype)
                tensor.data = as_before.copy_(tensor.detach())


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The modules that their owner keeps out of training: those in evaluation mode although the network as a whole is in
    training mode, and normalisations whose weights are all frozen. Training must leave them in evaluation mode, or their
    running statistics move.
    """
    parts = []
    for part in network.modules():
        weights = list(part.parameters(recurse=False))
        fixed = hasattr(part, "running_mean") and weights and not any(weight.requires_grad for weight in weights)
        if fixed or (network.training and not part.training):
            parts.append(part)
    return parts


def to_channels_last(module: nn.Module, network: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Lay out the 4-D weights of `module` with channels last, which trains faster, where `network` works so.

    A network that flattens its maps by `.view` does not, and one that reads a tensor's memory would answer otherwise: two
    images go through a copy in both layouts, in training mode and in evaluation mode, before anything is changed.

    Args:
        module: what is laid out: `network` itself, or a distiller around it.
        image_shape: (C, H, W) of what the network takes.

    Returns:
        Whether it was done. `preserve_state` undoes it.
    """
    works = _works_channels_last(network, image_shape)
    if works:
        _lay_out(module)
    return works


def _works_channels_last(network: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    weight = next((each for each in network.parameters() if each.is_floating_point()), None)
    if weight is None or isinstance(network, torch.jit.ScriptModule):
        return False
    images = torch.linspace(-1, 1, 2 * image_shape[0] * image_shape[1] * image_shape[2], device=weight.device)
    images = images.view(2, *image_shape).to(weight.dtype)
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        try:
            trial = copy.deepcopy(network).requires_grad_(True).eval()
            with torch.no_grad():
                expected = outputs_of(trial(images))
                _lay_out(trial)
                images = images.contiguous(memory_format=torch.channels_last)
                same = torch.allclose(outputs_of(trial(images)), expected, rtol=1e-3, atol=1e-4)
            outputs_of(trial.train()(images)).float().square().mean().backward()
        except (RuntimeError, ValueError):  # .view of such a map; batch norm of a single value a channel
            return False
    return same


def _lay_out(module: nn.Module) -> None:
    for part in module.modules():
        for _, tensor in _own_tensors(part):
            if tensor.ndim == 4:  # not torch's own .to(memory_format=...), which refuses networks with 5-D weights
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _own_tensors(part: nn.Module) -> list[tuple[str, Tensor]]:
    tensors = {**part._parameters, **part._buffers}
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None and tensor.layout == torch.strided]
