"""Tensors of all processes of a run, in the order of their ranks; of a single process, its own."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether the run has several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@torch.no_grad()
def gather(rows: Tensor) -> Tensor:
    """The rows [N, ...] of every process, [N x processes, ...], without gradient; every process has as many."""
    if not several():
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`, and the gradient of every process's loss comes back to the process that a row is from.

    A loss that each process takes of all rows has, averaged over processes as data-parallel training does it, the
    gradient of that loss in one process.
    """
    return _Gather.apply(rows) if several() else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: Tensor) -> Tensor:
        context.length = len(rows)
        return gather(rows)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        start = distributed.get_rank() * context.length
        return gradient[start : start + context.length]
