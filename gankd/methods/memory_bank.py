"""What methods remember of samples from step to step, and the draw of whom to contrast a sample with.

Memory banks after Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
2018, arXiv 1805.01978; negatives of other classes as in Tian, Krishnan, Isola, "Contrastive Representation Distillation",
ICLR 2020, arXiv 1910.10699.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankd.distributed.processes import gather, is_distributed, send
from gankd.losses.precision import full_precision


class MemoryBank(nn.Module):
    """A row for every sample (`write`), or for the latest ones (`push`): the buffer `rows` [n, ...], stored with the run.

    All processes write what all of them saw, so that their banks stay equal without being sent around. Rows change in
    place: give a loss that needs the whole bank for its gradient a clone.

    rows: [n, ...] what is remembered before the first step.
    momentum: what a row keeps of itself when it is written.
    normalize: whether a row is divided by its norm when it is written.
    """

    buffers_stay_equal = True

    def __init__(self, rows: Tensor, *, momentum: float = 0.0, normalize: bool = False):
        super().__init__()
        self.momentum, self.normalize = momentum, normalize
        self.register_buffer("rows", rows)

    @classmethod
    def of_directions(cls, count: int, width: int, momentum: float = 0.0) -> "MemoryBank":
        """Rows [count, width] to be written as unit vectors; at first uniform in (-a, a) with E |row|^2 = 1."""
        limit = math.sqrt(3 / width)
        return cls(torch.empty(count, width).uniform_(-limit, limit), momentum=momentum, normalize=True)

    @torch.no_grad()
    def write(self, indices: Tensor, values: Tensor, *, gathered: bool = False) -> None:
        """Rows `indices` [N] become momentum * row + (1 - momentum) * value, values [N, ...], in every process.

        When an index occurs twice, its last occurrence counts, on every device.

        gathered: whether the arguments are those of all processes already.
        Raises ValueError: values of another shape than the rows.
        """
        if values.shape != (len(indices), *self.rows.shape[1:]):
            raise ValueError(
                f"{len(indices)} rows of a bank {list(self.rows.shape)} cannot take values {list(values.shape)}"
            )
        if not gathered:
            indices, values = gather(indices), gather(values)
        values = full_precision(values)
        if self.momentum:
            values = self.momentum * full_precision(self.rows[indices]) + (1 - self.momentum) * values
        if self.normalize:
            values = F.normalize(values, dim=1, eps=1e-12)
        # The order of two writes to one row is undefined on a GPU: let both write the same.
        place = torch.arange(len(indices), device=indices.device)
        last = place.new_zeros(len(self.rows)).scatter_reduce_(0, indices, place, "amax")[indices]
        self.rows.index_copy_(0, indices, values.to(self.rows.dtype)[last])

    @torch.no_grad()
    def push(self, values: Tensor) -> None:
        """The values [N, ...] of all processes come first; those that were there move back, the last ones fall out."""
        self.rows = torch.cat([gather(values).to(self.rows.dtype), self.rows])[: len(self.rows)].clone()


class PositiveSets(nn.Module):
    """Samples in the order of their labels, where the positives of a sample (itself among them) stand side by side.

    Buffers, which are not stored: `order` [n], places sorted by label; `first` [n], where in it a sample's positives begin;
    `count` [n], how many there are.

    labels: [n]; positives have equal ones, or scalars that differ by at most kappa.
    largest: at least every sample's count, where finding it would have to wait for the device.
    """

    buffers_stay_equal = True

    def __init__(self, labels: Tensor, kappa: float | None, *, largest: int | None = None):
        super().__init__()
        labels = labels if kappa is None else full_precision(labels)
        values, order = labels.sort(stable=True)
        lowest, highest = (labels, labels) if kappa is None else (labels - kappa, labels + kappa)
        first = torch.searchsorted(values, lowest)
        count = torch.searchsorted(values, highest, right=True) - first
        for name, buffer in (("order", order), ("first", first), ("count", count)):
            self.register_buffer(name, buffer, persistent=False)
        self.largest = int(count.max()) if largest is None else largest

    @torch.no_grad()
    def draw(
        self,
        anchors: Tensor,  # [N] int64, of all processes
        *,
        num_negatives: int,
        mode: str = "exact",  # positive: "exact" the anchor itself, "relax" any of its positives
        rows: slice = slice(None),  # whose draws are wanted
    ) -> Tensor:  # [N, K + 1] int64
        """A positive and K negatives of each anchor; one shuffle a batch instead of one a row.

        The pool of an anchor, of P samples, is one interval of the cyclic order of labels. All rows walk through one random
        permutation of places in their intervals, each from its own start, uniform over its pool, and take the first K
        places that they have. A row is thus a uniform draw without replacement, as the permutation is random. And,
        whatever the permutation, the random start gives each sample of the pool the chance K / P of being in the row,
        independently of the other rows: for a sum over negatives, as the loss and its gradient are, mean and variance are
        those of independent rows.

        A pool smaller than K is gone through again; of an empty one the negatives mean nothing. The draws are those of
        the first process' default generator, and nothing is read from the device.
        """
        n, device = len(self.order), anchors.device
        random = torch.randint(1 << 62, (2, len(anchors)), device=device)  # so large that % is uniform
        shuffle = torch.randperm(n, device=device)
        if is_distributed():
            send([random, shuffle], 0)
        random, anchors = random[:, rows], anchors[rows]
        first, count = self.first[anchors], self.count[anchors]  # [N]
        pool = n - count
        at_least_one = pool.clamp(min=1)
        positives = anchors if mode == "exact" else self.order[first + random[0] % count]
        position = torch.empty_like(shuffle).scatter_(0, shuffle, torch.arange(n, device=device))
        start = position[random[1] % at_least_one]
        length = min(num_negatives + self.largest, n)  # long enough for K places
        walk = torch.cat([shuffle, shuffle]).unfold(0, length, 1)[start]  # [N, length]
        taken = walk < pool[:, None]
        slot = taken.cumsum(1).sub_(1)
        slot.masked_fill_(~taken, num_negatives).clamp_(max=num_negatives)  # the last column takes what is left over
        places = walk.new_zeros(len(anchors), num_negatives + 1).scatter_(1, slot, walk)[:, :-1]
        if num_negatives > n - self.largest:  # some pool may be smaller
            places = places.gather(1, torch.arange(num_negatives, device=device) % at_least_one[:, None])
        twice = torch.cat([self.order, self.order])  # the interval behind the positives wraps around
        return torch.cat([positives[:, None], twice[(first + count)[:, None] + places]], dim=1)
