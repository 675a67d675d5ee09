"""What a user lends comes back as it was: a network's modes, flags and layout.

with preserve_state(network):
    network.to("cuda", memory_format=torch.channels_last).eval().requires_grad_(False)
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


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
        for name, tensor in own_tensors(part)
    ]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, name, device, dtype, shape, stride in layouts:
            tensor = {**part._parameters, **part._buffers}.get(name)  # those of a scripted part have no `get`
            if tensor is None or tensor.shape != shape:  # replaced meanwhile, on purpose
                continue
            if (tensor.device, tensor.dtype, tensor.stride()) != (device, dtype, stride):
                expanded = 0 in stride  # one value in several places, which cannot be written
                empty = torch.empty(shape) if expanded else torch.empty_strided(shape, stride)
                tensor.data = empty.to(device, dtype, memory_format=torch.preserve_format).copy_(tensor.detach())


@contextlib.contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Afterwards every submodule is in its own mode again: some may be frozen in evaluation mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


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


def own_tensors(part: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers that lie in memory as strided tensors, by name, without its submodules'."""
    tensors = {**part._parameters, **part._buffers}
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None and tensor.layout == torch.strided]
