"""One pass through a network as it will be trained, which leaves no trace: what cannot work is known before anything runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def trial(network: nn.Module, images: Tensor) -> object:
    """Forward (training mode) and backward of normalised images [N, C, H, W]; returns the outputs.

    Modes, buffers, gradients and the random state are as before afterwards.

    Raises:
        RuntimeError, and whatever the network raises.
    """
    modes = [(part, part.training) for part in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    try:
        with torch.random.fork_rng():
            for parameter, _ in gradients:
                parameter.grad = None
            outputs = network.train()(images)
            loss = sum(tensor.float().sum() for tensor in tensors_in(outputs) if tensor.requires_grad)
            if isinstance(loss, Tensor):
                loss.backward()
        return outputs
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for part, mode in modes:
            part.training = mode


def tensors_in(outputs: object) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dictionaries."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | tuple | list):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from tensors_in(part)


def takes_channels_last(network: nn.Module, images: Tensor) -> bool:
    """Whether a network trains in the memory format that is faster for convolutions: not one that flattens with `.view`, nor
    one with kernels of three dimensions. It comes back in the format it had."""
    if any(tensor.ndim == 5 for tensor in (*network.parameters(), *network.buffers())):
        return False
    with memory_format_kept(network):
        network.to(memory_format=torch.channels_last)
        try:
            trial(network, images)
        except RuntimeError:
            return False
    return True


@contextlib.contextmanager
def memory_format_kept(network: nn.Module) -> Iterator[None]:
    """Give the parameters and buffers of a network back in the memory format in which they were lent."""
    lent = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_contiguous()]
    try:
        yield
    finally:
        for tensor in lent:
            if not tensor.is_contiguous():
                tensor.data = tensor.data.contiguous()
