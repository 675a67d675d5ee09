"""Tensors of all processes of a run, in the order of the batch that they share; of a single process, its own."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    """Whether the run has several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@torch.no_grad()
def gather(rows: Tensor) -> Tensor:
    """The rows [N, ...] of every process, [N x processes, ...], without gradient; every process has as many.

    They stand where they do in the batch of all processes, of which process r has every `processes`-th row from r on.
    """
    if not is_distributed():
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def own_rows() -> slice:
    """Which rows of what was gathered are from this process."""
    return slice(distributed.get_rank(), None, distributed.get_world_size()) if is_distributed() else slice(None)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`, and the gradient of every process's loss comes back to the process that a row is from.

    A loss that each process takes of all rows has, averaged over processes as data-parallel training does it, the
    gradient of that loss in one process.
    """
    return _Gather.apply(rows) if is_distributed() else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return _SumOfOwnRows.apply(gradient)


class _SumOfOwnRows(torch.autograd.Function):
    """The transpose of `_Gather`, as which it has a gradient too."""

    @staticmethod
    def forward(context, rows: Tensor) -> Tensor:
        rows = rows.clone(memory_format=torch.contiguous_format)  # autograd may share it with another branch
        distributed.all_reduce(rows)
        return rows[own_rows()]

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return _Gather.apply(gradient)


def mean_with_gradient(tensor: Tensor) -> Tensor:
    """The mean over processes, each of which has a tensor of the same shape; the gradient is that of the mean loss."""
    return gather_with_gradient(tensor[None]).mean(0) if is_distributed() else tensor


def runs(index: int) -> bool:
    """Whether this process is the one, among all of them, that item `index` of a list falls to."""
    return not is_distributed() or index % distributed.get_world_size() == distributed.get_rank()


@torch.no_grad()
def send(tensors: Sequence[Tensor], source: int) -> None:
    """Write the tensors of process `source` into those of every other, which has as many of the same shapes and types."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        joined = torch.cat([tensor.flatten() for tensor in alike])
        distributed.broadcast(joined, source)
        if distributed.get_rank() != source:
            for tensor, part in zip(alike, joined.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))


def share_with_gradient(found: Sequence[Sequence[Tensor]], idle: Sequence[Tensor]) -> list[list[Tensor]]:
    """What the processes found, in each of them; item i of the list is from the process that `runs(i)`.

    The gradient of every process's loss comes back to the process that a tensor is from. As with `gather_with_gradient`,
    a loss that each process takes of everything has, averaged over processes, the gradient of that loss in one process.

    found: of an item that another process found, tensors of the same shapes whose values do not matter.
    idle: the parameters behind those items. They get the gradient zero, as processes wait for that of every one.
    """
    owners = [index % distributed.get_world_size() for index, tensors in enumerate(found) for _ in tensors]
    shared = iter(_Share.apply(owners, *[tensor for tensors in found for tensor in tensors], *idle))
    return [[next(shared) for _ in tensors] for tensors in found]


class _Share(torch.autograd.Function):
    """One node for everything, so that all processes reduce its gradients in one order, whatever each of them ran."""

    @staticmethod
    def forward(context, owners: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        context.owners, context.idle = owners, tensors[len(owners) :]
        shared = [tensor.clone() for tensor in tensors[: len(owners)]]
        for process in sorted(set(owners)):
            send([tensor for tensor, owner in zip(shared, owners, strict=True) if owner == process], process)
        return tuple(shared)

    @staticmethod
    def backward(context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own: list[Tensor | None] = [None] * len(gradients)
        for process in sorted(set(context.owners)):
            places = [place for place, owner in enumerate(context.owners) if owner == process]
            joined = torch.cat([gradients[place].flatten() for place in places])
            distributed.reduce(joined, process)
            if distributed.get_rank() == process:
                parts = joined.split([gradients[place].numel() for place in places])
                for place, part in zip(places, parts, strict=True):
                    own[place] = part.view_as(gradients[place])
        return (None, *own, *map(torch.zeros_like, context.idle))
