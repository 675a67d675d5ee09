"""Two images through a network as it will be trained, before anything is spent on it; the network stays as it is.

check_trainable(student, images, num_outputs=10, whose="student.model")
with preserve_state(student):
    to_channels_last(distiller, student, images)
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gankd.models.outputs import check_numbers, outputs_of
from gankd.models.state import own_tensors, preserve_state


def check_trainable(network: nn.Module, images: Tensor, num_outputs: int, whose: str) -> None:
    """A forward in evaluation mode, and one in training mode with its backward.

    images: normalised, two or more, [N, C, H, W].
    num_outputs: how many numbers the network must answer an image with.
    whose: the network, in sentences: "the student", "student.model".
    Raises ValueError: the network does not take such images or cannot learn from them; its outputs are none, too many,
    too few or not finite.
    """
    name = f"{whose} ({getattr(network, 'name', type(network).__name__)})"
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{name}: all parameters are frozen; set requires_grad on those that should be trained.")
    kinds = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    if kinds - {torch.float32}:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ValueError(
            f"{name} has weights of {found}; train it in float32 (network.float()), with an Accelerator of mixed_precision "
            "where half precision is wanted."
        )
    with _as_it_was(network):
        for mode in ("evaluation", "training"):
            try:
                outputs = outputs_of(network.train(mode == "training")(images))
                if mode == "training":
                    outputs.float().square().mean().backward()
            except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
                shape, said = "x".join(map(str, images.shape[1:])), " ".join(str(error).split())[:300]
                raise ValueError(f"{name} cannot take images of {shape} in {mode} mode: {said}") from error
            if outputs.shape not in {(len(images), num_outputs), (len(images),) if num_outputs == 1 else ()}:
                raise ValueError(
                    f"{name} has {outputs.numel() / len(images):g} outputs an image in {mode} mode, the task needs "
                    f"{num_outputs}: change its last layer."
                )
            check_numbers(outputs, f"{name} in {mode} mode")


def to_channels_last(module: nn.Module, network: nn.Module, images: Tensor) -> bool:
    """Lay out the 4-D weights of `module` with channels last, which trains faster, where `network` works so.

    A network that flattens its maps by `.view` does not, and one that reads a tensor's memory would answer otherwise: two
    images go through it in both layouts first.

    module: what is laid out: `network` itself, or a distiller around it.
    images: normalised, [N, C, H, W].

    Returns whether it was done. `preserve_state` undoes it.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return False
    with _as_it_was(network):
        try:
            with torch.no_grad():
                expected = outputs_of(network.eval()(images))
                _lay_out(network)
                images = images.contiguous(memory_format=torch.channels_last)
                works = torch.allclose(outputs_of(network(images)), expected, rtol=1e-3, atol=1e-4)
            outputs = outputs_of(network.train()(images))
            if outputs.requires_grad:
                outputs.float().square().mean().backward()
        except (RuntimeError, TypeError, ValueError):  # what is wrong with it in any layout, `check_trainable` says
            works = False
    if works:
        _lay_out(module)
    return works


def has_idle_parameters(network: nn.Module, images: Tensor) -> bool:
    """Whether some trainable parameter has no part in the outputs for `images`, normalised, [N, C, H, W]."""
    with _as_it_was(network):
        outputs_of(network.train()(images)).float().square().mean().backward()
        return any(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


@contextlib.contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Besides what `preserve_state` preserves, buffers, gradients and the random state are afterwards as before."""
    buffers = [
        (part, name, tensor, tensor.clone())
        for part in network.modules()
        for name, tensor in part._buffers.items()
        if tensor is not None
    ]
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    device = next((parameter.device for parameter, _ in gradients), torch.device("cpu"))
    with preserve_state(network), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for part, name, buffer, before in buffers:
                part._buffers[name] = buffer
                buffer.data.copy_(before)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _lay_out(module: nn.Module) -> None:
    for part in module.modules():
        for _, tensor in own_tensors(part):
            if tensor.ndim == 4:  # not torch's own .to(memory_format=...), which refuses networks with 5-D weights
                last = torch.empty_like(tensor.data, memory_format=torch.channels_last)
                tensor.data = last.copy_(tensor.data)  # `contiguous` would leave the strides of a one-channel kernel
