"""Batches as a pure function of (seed, step), so that a run resumes exactly and any number of processes sees the same.

A set that fits into `memory_budget` stays on the device as one uint8 tensor, and a batch is an index into it; a larger
one is read by the workers of an ordinary `DataLoader` in the same order.

    source = BatchSource(real, synthetic, batch_size=128, synthetic_fraction=0.75, device="cuda")
    for batch in source.stream(0, 10 * source.steps_per_epoch): ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gankd.data.sets import ImageSet
from generators.randomness import mix, seeded


@dataclasses.dataclass(frozen=True)
class Batch:
    """B samples on the device."""

    images: Tensor
    """uint8 [B, C, H, W]."""
    labels: Tensor
    """int64 [B] class ids, or float32 [B] scalar targets."""
    indices: Tensor
    """int64 [B], position in the union of the sets: real first, synthetic after."""
    is_synthetic: Tensor
    """bool [B]."""
    teacher_outputs: Tensor | None = None
    """float32 [B, K], what a teacher said of the un-augmented images; None unless every set of the source has them."""


def epoch_permutation(num_samples: int, *, seed: int, epoch: int) -> Tensor:
    """A random order of 0..num_samples - 1, int64 on the CPU: a function of (num_samples, seed, epoch) alone."""
    return torch.randperm(num_samples, generator=seeded(seed, "epoch", epoch), device="cpu")


class BatchSource:
    """The endless stream of training batches over real samples, synthetic ones, or both.

    Every batch is full. Sample k of the stream of a set with n samples is `epoch_permutation(epoch=k // n)[k % n]`:
    each sample is seen once in a pass, a batch may straddle two passes, and a set smaller than a batch wraps around.

    Args:
        real, synthetic: at least one, none of them empty; of one image shape and one label type.
        batch_size: samples of the global batch, over all processes. Each rank gets its `[rank::world_size]`.
        synthetic_fraction: None shuffles the union of both sets uniformly; a number in [0, 1] puts
            round(fraction * batch_size) synthetic samples into every batch, after the real ones, and each set goes
            through its own passes.
        memory_budget: bytes of images, of both sets together, that may stay on the device; beyond, `workers`
            processes (0: the training process) read them.
        sampling: "class_pairs" draws half of a batch as above, and puts behind it for each of these samples another one
            of its class, uniformly (itself where there is no other; of its kind, real or synthetic, where a fraction
            is given). An odd batch has a second partner for its first sample. Needs class ids.

    Raises:
        ValueError: no set, an empty one, two that do not fit together, a fraction out of range or that leaves one of
            the two kinds out by rounding, a batch size that the processes cannot share, pairs of scalar targets or
            where every class has but one sample.
    """

    def __init__(
        self,
        real: ImageSet | None,
        synthetic: ImageSet | None = None,
        *,
        batch_size: int,
        synthetic_fraction: float | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,  # None: the CPU
        memory_budget: int = 2 << 30,
        workers: int = 2,
        rank: int = 0,
        world_size: int = 1,
        sampling: str = "uniform",  # or "class_pairs"
    ):
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert sampling in ("uniform", "class_pairs"), f"unknown sampling {sampling}"
        sets = [dataset for dataset in (real, synthetic) if dataset is not None]
        _check_sets(sets)
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} does not split over {world_size} processes: make it a multiple of them."
            )
        num_drawn = batch_size  # from the passes; the rest of a batch are their partners
        if sampling == "class_pairs":
            _check_pairs(sets, batch_size, world_size)
            num_drawn = batch_size // 2
        num_synthetic = None
        if synthetic_fraction is not None:
            num_synthetic = _num_synthetic(synthetic_fraction, num_drawn, real, synthetic)
        self.batch_size, self.workers = batch_size, workers
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cpu" if device is None else device)
        self.num_real = 0 if real is None else len(real)
        self.description = {"real": self.num_real, "synthetic": len(synthetic or ()), "fraction": synthetic_fraction}
        self.description |= {"sampling": sampling}
        self.num_samples = sum(map(len, sets))

        self.resident = sum(dataset.num_bytes for dataset in sets) <= memory_budget
        if self.resident:
            images = [dataset.in_memory().images for dataset in sets]
            self.images = (images[0] if len(images) == 1 else torch.cat(images)).to(self.device)
        else:
            self.images = _Union(sets)
        self.labels = torch.cat([dataset.labels for dataset in sets]).to(self.device)
        self.teacher_outputs = None
        if all(dataset.teacher_outputs is not None for dataset in sets):
            self.teacher_outputs = torch.cat([dataset.teacher_outputs for dataset in sets]).to(self.device)

        # Permutations live where they index: one copy to the device a pass, none a step.
        self.index_device = index_device = self.device if self.resident else torch.device("cpu")
        if num_synthetic is None:
            parts = [_EndlessPasses(self.num_samples, num_drawn, seed=seed, device=index_device)]
        else:
            parts = [
                _EndlessPasses(self.num_real, num_drawn - num_synthetic, seed=seed, device=index_device),
                _EndlessPasses(
                    self.num_samples - self.num_real,
                    num_synthetic,
                    seed=mix(seed, "synthetic"),
                    device=index_device,
                    offset=self.num_real,
                ),
            ]
        self.parts = [part for part in parts if part.num_per_step > 0]
        self.pairs = None
        if sampling == "class_pairs":
            groups = self.labels.cpu()
            if num_synthetic is not None:  # a synthetic partner would change the share of synthetic samples
                groups = 2 * groups + (torch.arange(self.num_samples, device="cpu") >= self.num_real)
            self.pairs = _ClassPairs(groups, seed=seed, device=index_device)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:]) if self.resident else tuple(self.images.image_shape)

    @property
    def steps_per_epoch(self) -> int:
        """ceil(real samples / batch_size): an epoch is a pass over the real data (over the synthetic data where there
        is no real), so that arms with and without synthetic data take the same number of steps."""
        return -(-(self.num_real or self.num_samples) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of global step `step` (from 0)."""
        return self.at(self._positions(step))

    def at(self, positions: Tensor) -> Batch:
        """The samples at `positions`, int64 [B], of the union."""
        return self._batch(positions, self._images(positions))

    def passes(self, step: int) -> Tensor:
        """How many passes over its set came before each sample of the batch of `step`, int64 [batch_size / world_size].

        For the partner in a pair of one class: before the sample that it is put beside.
        """
        numbers = torch.cat([part.pass_numbers(step) for part in self.parts])
        share = slice(self.rank, None, self.world_size)
        shares = [numbers[share]]
        if self.pairs is not None:
            shares.append(torch.cat([numbers, numbers[: self.batch_size - 2 * len(numbers)]])[share])
        return torch.cat(shares).to(self.device, non_blocking=True)

    def in_order(self, batch_size: int = 512) -> Iterator[Batch]:
        """Every sample of the union once, in its order, the last batch smaller: for what is measured before training.

        In several processes each gets all of them.
        """
        device = self.device if self.resident else torch.device("cpu")
        for positions in torch.arange(self.num_samples, device=device).split(batch_size):
            yield self._batch(positions, self._images(positions))

    def stream(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of the steps first_step..last_step - 1, read ahead by the workers where they are not resident."""
        if self.resident:
            yield from map(self.batch, range(first_step, last_step))
            return
        loader = DataLoader(
            self.images,
            batch_size=None,  # an item of the sampler is the list of a whole batch, and one read serves all of it
            sampler=(self._positions(step).tolist() for step in range(first_step, last_step)),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without one, iterating draws from the default random stream
        )
        for positions, images in loader:
            yield self._batch(positions, images)

    def _images(self, positions: Tensor) -> Tensor:
        return self.images.index_select(0, positions) if self.resident else self.images[positions.tolist()][1]

    def _positions(self, step: int) -> Tensor:
        """int64 [batch_size / world_size], positions in the union."""
        positions = torch.cat([part.positions(step) for part in self.parts])
        share = slice(self.rank, None, self.world_size)
        if self.pairs is None:
            return positions[share]
        missing = self.batch_size - 2 * len(positions)
        partners = self.pairs.partners(torch.cat([positions, positions[:missing]]), step)
        return torch.cat([positions[share], partners[share]])  # a process has both of a pair

    def _batch(self, positions: Tensor, images: Tensor) -> Batch:
        positions = positions.to(self.device, non_blocking=True)
        return Batch(
            images=images.to(self.device, non_blocking=True),
            labels=self.labels.index_select(0, positions),
            indices=positions,
            is_synthetic=positions >= self.num_real,
            teacher_outputs=None if self.teacher_outputs is None else self.teacher_outputs.index_select(0, positions),
        )


def ordered_batches(
    dataset: ImageSet,
    *,
    batch_size: int,
    device: torch.device | str | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """For evaluation: each sample once, in order; the last batch is smaller.

    Each rank gets its `[rank::world_size]` of every global batch. A rank whose share of the last one is empty yields
    one batch less, so gather after the loop, not inside it.
    """
    device = torch.device("cpu" if device is None else device)
    for start in range(0, len(dataset), batch_size):
        positions = torch.arange(start, min(start + batch_size, len(dataset)), device="cpu")[rank::world_size]
        if len(positions) == 0:
            continue
        outputs = dataset.teacher_outputs
        yield Batch(
            images=dataset.images[positions].to(device),
            labels=dataset.labels[positions].to(device),
            indices=positions.to(device),
            is_synthetic=torch.full((len(positions),), dataset.is_synthetic, device=device),
            teacher_outputs=None if outputs is None else outputs[positions].to(device),
        )


class _EndlessPasses:
    """One permutation of a set after the other, `num_per_step` samples a step; the set begins at `offset`."""

    def __init__(self, num_samples: int, num_per_step: int, *, seed: int, device: torch.device, offset: int = 0):
        self.num_samples, self.num_per_step, self.offset = num_samples, num_per_step, offset
        self.seed, self.device = seed, device
        self.passes: dict[int, Tensor] = {}

    def positions(self, step: int) -> Tensor:
        """int64 [num_per_step], positions in the union."""
        first = step * self.num_per_step
        last = first + self.num_per_step
        pieces = []
        while first < last:
            epoch, start = divmod(first, self.num_samples)
            stop = min(self.num_samples, start + last - first)
            pieces.append(self._pass(epoch)[start:stop])
            first += stop - start
        return torch.cat(pieces)

    def passes_of(self, step: int) -> range:
        """The passes, counted from 0, that the samples of `positions(step)` are from."""
        first = step * self.num_per_step
        return range(first // self.num_samples, (first + self.num_per_step - 1) // self.num_samples + 1)

    def pass_numbers(self, step: int) -> Tensor:
        """int64 [num_per_step]: the pass from which each of `positions(step)` is, from 0."""
        first = step * self.num_per_step
        return torch.arange(first, first + self.num_per_step, device=self.device) // self.num_samples

    def _pass(self, epoch: int) -> Tensor:
        if epoch not in self.passes:
            if len(self.passes) == 2:  # a batch may straddle two passes
                del self.passes[next(iter(self.passes))]
            permutation = epoch_permutation(self.num_samples, seed=self.seed, epoch=epoch) + self.offset
            self.passes[epoch] = permutation.to(self.device, non_blocking=True)
        return self.passes[epoch]


class _ClassPairs:
    """For any sample another one of its group, drawn uniformly; the sample itself where its group has no other."""

    def __init__(self, groups: Tensor, *, seed: int, device: torch.device):
        _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
        members = groups.argsort(stable=True)  # one group after the other
        first = (sizes.cumsum(dim=0) - sizes)[group]
        place = torch.empty_like(members)
        place[members] = torch.arange(len(members), device="cpu")
        self.members, self.first, self.size = members.to(device), first.to(device), sizes[group].to(device)
        self.place = (place - first).to(device)
        self.seed = seed

    def partners(self, positions: Tensor, step: int) -> Tensor:
        """int64 positions [M] to those of their partners, [M]."""
        draws = torch.rand(
            len(positions), generator=seeded(self.seed, "pairs", step), dtype=torch.float64, device="cpu"
        )
        size = self.size[positions]
        steps_on = 1 + (draws.to(size.device, non_blocking=True) * (size - 1)).long()
        return self.members[self.first[positions] + (self.place[positions] + steps_on) % size]


class _Union(Dataset):
    """The images of several sets, read on the CPU a batch at a time."""

    def __init__(self, sets: list[ImageSet]):
        self.sets = [(dataset.images, len(dataset)) for dataset in sets]
        self.image_shape = sets[0].image_shape

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """B positions in the union to the same as int64 [B], and the images uint8 [B, C, H, W]."""
        positions = torch.tensor(indices)
        batch = torch.empty(len(positions), *self.image_shape, dtype=torch.uint8)
        offset = 0
        for images, length in self.sets:
            mine = (positions >= offset) & (positions < offset + length)
            if mine.any():
                batch[mine] = images[positions[mine] - offset]
            offset += length
        return positions, batch


def _check_sets(sets: list[ImageSet]) -> None:
    if not sets:
        raise ValueError("there is neither a real nor a synthetic set to draw batches from: give at least one.")
    for dataset in sets:
        if len(dataset) == 0:
            raise ValueError(f"{dataset.name}: the set holds no sample; check what selected its samples.")
    first, last = sets[0], sets[-1]
    if first.image_shape != last.image_shape:
        raise ValueError(
            f"{first.name} has images of shape {first.image_shape} and {last.name} of {last.image_shape}: "
            "bring both to one size and number of channels."
        )
    if first.labels.dtype != last.labels.dtype:
        raise ValueError(
            f"{first.name} has {first.labels.dtype} labels and {last.name} {last.labels.dtype}: "
            "class ids (int64) and scalar targets (float32) do not mix."
        )
    outputs = [dataset.teacher_outputs for dataset in sets]
    if all(output is not None for output in outputs) and outputs[0].shape[1:] != outputs[-1].shape[1:]:
        raise ValueError(
            f"{first.name} has teacher outputs of shape {tuple(outputs[0].shape)} and {last.name} of "
            f"{tuple(outputs[-1].shape)}: they come from different teachers."
        )


def _check_pairs(sets: list[ImageSet], batch_size: int, world_size: int) -> None:
    labels = torch.cat([dataset.labels for dataset in sets])
    if labels.is_floating_point():
        raise ValueError("pairs of one class need class ids, and these labels are scalars: use another method.")
    if batch_size < 2 * world_size or (world_size > 1 and batch_size % (2 * world_size)):
        raise ValueError(
            f"batch_size {batch_size} does not split into pairs of one class over {world_size} processes: "
            f"make it a multiple of {2 * world_size}."
        )
    if labels.bincount().max() < 2:
        raise ValueError("pairs of one class need a class with two samples: every class has only one; add samples.")


def _num_synthetic(fraction: float, batch_size: int, real: ImageSet | None, synthetic: ImageSet | None) -> int:
    """Synthetic samples in a batch, checked against what there is to draw from."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"synthetic_fraction is {fraction}; expected a number in [0, 1], or null for the union.")
    num_synthetic = round(fraction * batch_size)
    if 0 < fraction < 1 and num_synthetic in (0, batch_size):
        missing = "synthetic" if num_synthetic == 0 else "real"
        raise ValueError(
            f"synthetic_fraction {fraction} of a batch of {batch_size} rounds to no {missing} sample: "
            "enlarge the batch or change the fraction."
        )
    if num_synthetic > 0 and synthetic is None:
        raise ValueError(f"synthetic_fraction is {fraction}, but there is no synthetic set.")
    if num_synthetic < batch_size and real is None:
        raise ValueError(f"synthetic_fraction is {fraction}, but there is no real set: use 1 or null.")
    return num_synthetic
