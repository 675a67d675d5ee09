"""Batch norm with the statistics of all processes of a run, on any device (`torch.nn.SyncBatchNorm` refuses the CPU)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gankd.distributed.processes import gather_with_gradient, is_distributed
from gankd.losses.precision import full_precision


@contextmanager
def synchronized(*modules: nn.Module) -> Iterator[None]:
    """Within it, the batch norms in `modules` normalise with mean and variance over the rows of all processes.

    Forward passes belong inside, the backward pass may come after. Gradients are those that data-parallel training has of
    one process with all rows: a loss that each process takes of its own rows has, averaged over processes, the gradient of
    the mean loss. Running statistics are those of all rows, hence equal in every process. In evaluation mode and in one
    process nothing changes.

    Meant are `nn.BatchNorm1d` and `nn.BatchNorm2d` themselves; their subclasses and everything else stay as they are, and
    so do all parameters and keys. Every process must pass the same norms in the same order, each with at least one row.
    """
    parts = [part for module in modules for part in module.modules()] if is_distributed() else []
    plain = {part: type(part) for part in parts if type(part) in _SYNCHRONIZED}
    try:
        for part, kind in plain.items():
            part.__class__ = _SYNCHRONIZED[kind]
        yield
    finally:
        for part, kind in plain.items():
            part.__class__ = kind


class _Synchronized:
    """The forward pass; before a class of batch norms among a class's bases."""

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training:
            return super().forward(rows)
        self._check_input_dim(rows)
        with torch.autocast(rows.device.type, enabled=False):
            values = full_precision(rows)
            mean, variance, count = _statistics(values)
            if self.track_running_stats:
                self._track(mean.detach(), (variance * count / (count - 1)).detach())
            scale = torch.rsqrt(variance + self.eps)
            if self.affine:
                scale = scale * full_precision(self.weight)
            shift = -mean * scale
            if self.affine:
                shift = shift + full_precision(self.bias)
            shape = (1, -1, *[1] * (rows.ndim - 2))
            return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(rows.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _SynchronizedBatchNorm1d(_Synchronized, nn.BatchNorm1d):
    pass


class _SynchronizedBatchNorm2d(_Synchronized, nn.BatchNorm2d):
    pass


_SYNCHRONIZED = {nn.BatchNorm1d: _SynchronizedBatchNorm1d, nn.BatchNorm2d: _SynchronizedBatchNorm2d}


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] of values [N, C, ...] of all processes, and how many they are of, a scalar.

    With the share s of a process in all values: mean = sum s mean_p, variance = sum s (variance_p + (mean_p - mean)^2),
    which does not cancel as the mean of squares less the square of the mean does. One collective forward, one backward.
    """
    variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
    count = mean.new_full((1,), values.numel() / len(mean))
    parts = gather_with_gradient(torch.cat([mean, variance, count])[None])  # [processes, 2 C + 1]
    means, variances, counts = parts.split([len(mean), len(mean), 1], dim=1)
    total = counts.detach().sum()
    shares = counts.detach() / total
    mean = (shares * means).sum(dim=0)
    variance = (shares * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance, total
