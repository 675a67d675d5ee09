"""Batches as a pure function of (seed, step), so that a run resumes exactly and any number of processes sees the same.

A set that fits into `memory_budget` stays on the device as one uint8 tensor, and a batch is an index into it; a larger
one is read by the workers of an ordinary `DataLoader` in the same order.

    source = BatchSource(real, synthetic, batch_size=128, synthetic_fraction=0.75, device="cuda")
    for batch in source.stream(0, 10 * source.steps_per_epoch): ...
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gankd.data.live import LiveSamples
from gankd.data.pairs import ClassPairs, DistinctClasses
from gankd.data.sets import ImageSet, LazyImages, is_picklable
from generators.randomness import mix, seeded

SAMPLINGS = {"uniform": 1, "class_pairs": 2, "distinct_pairs": 2, "class_fours": 4}
"""How batches are drawn: the images of a class that are put together."""


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
    generator_features: Tensor | None = None
    """float32 [S, D], a generator's pooled features of the batch's S synthetic samples, which come last; None unless the
    synthetic set has them and its share of a batch is fixed."""


def epoch_permutation(num_samples: int, *, seed: int, epoch: int) -> Tensor:
    """A random order of 0..num_samples - 1, int64 on the CPU: a function of (num_samples, seed, epoch) alone."""
    return torch.randperm(num_samples, generator=seeded(seed, "epoch", epoch), device="cpu")


class BatchSource:
    """The endless stream of training batches over real samples, synthetic ones, or both.

    Every batch is full. Sample k of the stream of a set with n samples is `epoch_permutation(epoch=k // n)[k % n]`:
    each sample is seen once in a pass, a batch may straddle two passes, and a set smaller than a batch wraps around.

    real, synthetic: at least one, none of them empty; of one image shape and one label type.
    batch_size: samples of the global batch, over all processes. Each rank gets its `[rank::world_size]`.
    synthetic_fraction: None shuffles the union of both sets uniformly; a number in [0, 1] puts round(fraction *
        batch_size) synthetic samples into every batch, after the real ones, and each set goes through its own passes.
    memory_budget: bytes of images, of both sets together, that may stay on the device; beyond, `workers` processes (0:
        the training process) read them. Images with random transforms are always read.
    sampling: "class_pairs" draws half of a batch as above, and puts behind it for each of these samples another one of
        its class, uniformly (itself where there is no other; of its kind, real or synthetic, where a fraction is
        given). An odd batch has a second partner for its first sample. "class_fours" draws a quarter, puts partners
        behind it and then partners behind both; its images may repeat. "distinct_pairs" draws its half anew in every
        step, of as many classes as there are: a sample has one other of its class in the batch, or as few as can be.
        All need class ids.

    A synthetic set of a live generator (`data.live`) is drawn on the generator's device, batch by batch.
    Raises ValueError: no set, an empty one, two that do not fit together, a fraction out of range or that leaves one of
    the two kinds out by rounding, a batch size that the processes cannot share, pairs of scalar targets or where every
    class has but one sample; a live generator whose share of a batch is not fixed.
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
        sampling: str = "uniform",  # or another of SAMPLINGS
    ):
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert sampling in SAMPLINGS, f"unknown sampling {sampling}"
        sets = [dataset for dataset in (real, synthetic) if dataset is not None]
        _check_sets(sets)
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} does not split over {world_size} processes: make it a multiple.")
        num_drawn = batch_size  # from the passes; the rest of a batch are their partners
        if sampling != "uniform":
            _check_pairs(sets, sampling, batch_size, world_size)
            num_drawn = max(1, batch_size // SAMPLINGS[sampling])
        self.sizes = [batch_size // part for part in (2, 1) if part < SAMPLINGS[sampling]]  # as partners are put behind
        num_synthetic = None
        if synthetic_fraction is not None:
            num_synthetic = _num_synthetic(synthetic_fraction, num_drawn, real, synthetic)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cpu" if device is None else device)
        self.num_real = 0 if real is None else len(real)
        self.description = {"real": self.num_real, "synthetic": len(synthetic or ()), "fraction": synthetic_fraction}
        self.description |= {"sampling": sampling}
        self.num_samples = sum(map(len, sets))

        self.live = synthetic.images if synthetic is not None and isinstance(synthetic.images, LiveSamples) else None
        self.image_shape = sets[0].image_shape
        """(C, H, W)."""
        self.num_real_per_step = None
        """Number of real samples in the batch of all processes; None where that is left to chance."""
        if sampling == "uniform" and (len(sets) == 1 or num_synthetic is not None):
            self.num_real_per_step = 0 if real is None else batch_size - (num_synthetic or 0)
        if self.live is not None and self.num_real_per_step is None:
            raise ValueError(
                "samples of a live generator are neither shuffled among real ones nor drawn in pairs of a class: give "
                "synthetic_fraction and a method without pairs, or write them to disk (gankd.feature_set with a directory)."
            )
        stored = [dataset for dataset in sets if self.live is None or dataset.images is not self.live]
        self.is_random = any(dataset.is_random for dataset in stored)
        """Whether images are read afresh every time, with random transforms of the user's data set."""
        self.resident = not self.is_random and sum(dataset.num_bytes for dataset in stored) <= memory_budget
        if self.resident:
            images = [dataset.in_memory().images for dataset in stored]
            images = images or [torch.empty(0, *self.image_shape, dtype=torch.uint8)]
            self.images = (images[0] if len(images) == 1 else torch.cat(images)).to(self.device)
        else:
            self.images = _Union(stored, seed)
            self.workers = workers if is_picklable(self.images) else 0
        self.labels = torch.cat([dataset.labels for dataset in sets]).to(self.device)
        self.teacher_outputs = None
        if all(dataset.teacher_outputs is not None for dataset in sets):
            self.teacher_outputs = torch.cat([dataset.teacher_outputs for dataset in sets]).to(self.device)
        self.generator_features, self.feature_widths = None, () if synthetic is None else synthetic.feature_widths
        if self.feature_widths and self.live is None and self.num_real_per_step is not None:
            self.generator_features = synthetic.generator_features.to(self.device)

        # Permutations live where they index: one copy to the device a pass, none a step.
        on_device = self.resident and self.live is None
        self.index_device = index_device = self.device if on_device else torch.device("cpu")
        ranges = [(0, self.num_samples, num_drawn, seed)]
        if num_synthetic is not None:
            ranges = [(0, self.num_real, num_drawn - num_synthetic, seed)]
            ranges += [(self.num_real, self.num_samples, num_synthetic, mix(seed, "synthetic"))]
        self.parts = [_EndlessPasses(*each, device=index_device) for each in ranges if each[2] > 0]
        self.pairs, self.spread = None, []
        if sampling != "uniform":
            groups = self.labels.cpu()
            if num_synthetic is not None:  # a synthetic partner would change the share of synthetic samples
                groups = 2 * groups + (torch.arange(self.num_samples, device="cpu") >= self.num_real)
            self.pairs = ClassPairs(groups, device=index_device)
        if sampling == "distinct_pairs":
            parts = [each[:3] for each in ranges]
            self.spread = [DistinctClasses(self.labels.cpu(), parts, seed=seed, device=index_device)]

    @property
    def steps_per_epoch(self) -> int:
        """ceil(real samples / batch_size): an epoch is a pass over the real data (over the synthetic data where there
        is no real), so that arms with and without synthetic data take the same number of steps."""
        return -(-(self.num_real or self.num_samples) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of global step `step` (from 0)."""
        positions = self._positions(step)
        return self._with_features(self._batch(positions, self._stored_images(positions, step)))

    def at(self, positions: Tensor) -> Batch:
        """The samples at `positions`, int64 [B], of the union, those of a live generator last; without the features of
        stored ones."""
        return self._batch(positions, self._stored_images(positions))

    def some_generator_features(self, num_samples: int) -> Tensor:
        """The generator's features of the first synthetic samples, at most so many, float32 [num_samples, D]."""
        num_samples = min(num_samples, self.num_samples - self.num_real)
        if self.live is None:
            return self.generator_features[:num_samples].float()
        chunks = torch.arange(num_samples).split(self.batch_size)
        return torch.cat([self.live.draw(chunk)[1] for chunk in chunks]).to(self.device).float()

    def passes(self, step: int) -> Tensor:
        """How many passes over its set came before each sample of the batch of `step`, int64 [batch_size / world_size].

        For the partner in a pair of one class: before the sample that it is put beside.
        """
        numbers = torch.cat([part.pass_numbers(step) for part in self.parts])
        return self._share(numbers, lambda numbers: numbers).to(self.device, non_blocking=True)

    def in_order(self, batch_size: int = 512) -> Iterator[Batch]:
        """Every sample of the union once, in its order, the last batch smaller: for what is measured before training.

        In several processes each gets all of them.
        """
        for positions in torch.arange(self.num_samples, device=self.index_device).split(batch_size):
            yield self.at(positions)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of steps 0, 1, 2, ... without end."""
        return self.stream(0, sys.maxsize)

    def stream(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of the steps first_step..last_step - 1, read ahead by the workers where they are not resident."""
        if self.resident:
            yield from map(self.batch, range(first_step, last_step))
            return
        loader = DataLoader(
            self.images,
            batch_size=None,  # an item of the sampler is the list of a whole batch, and one read serves all of it
            sampler=((step, self._positions(step).tolist()) for step in range(first_step, last_step)),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without one, iterating draws from the default random stream
        )
        for positions, images in loader:
            yield self._with_features(self._batch(positions, images))

    def _stored_images(self, positions: Tensor, step: int | None = None) -> Tensor:
        """The images of those samples that are not a live generator's; `step`: see `_Union`."""
        if self.live is not None:
            positions = positions[positions < self.num_real]
        if self.resident:
            return self.images.index_select(0, positions.to(self.device))
        return self.images[step, positions.tolist()][1]

    def _positions(self, step: int) -> Tensor:
        """int64 [batch_size / world_size], positions in the union."""
        generator = seeded(self.seed, "pairs", step)
        drawn = torch.cat([part.positions(step) for part in self.spread or self.parts])
        return self._share(drawn, lambda positions: self.pairs.partners(positions, generator))

    def _share(self, batch: Tensor, partners: Callable[[Tensor], Tensor]) -> Tensor:
        """This rank's rows of what is drawn and of the partners that are put behind it; both of a pair are in one."""
        share = slice(self.rank, None, self.world_size)
        shares = [batch[share]]
        for size in self.sizes:
            rows = torch.arange(size - len(batch), device=batch.device) % len(batch)
            added = partners(batch[rows])
            shares.append(added[share])
            batch = torch.cat([batch, added])
        return torch.cat(shares)

    def _batch(self, positions: Tensor, images: Tensor) -> Batch:
        images, features = images.to(self.device, non_blocking=True), None
        if self.live is not None and len(images) < len(positions):
            drawn, features = self.live.draw(positions[len(images) :] - self.num_real)
            images = torch.cat([images, drawn.to(self.device)])
        positions = positions.to(self.device, non_blocking=True)
        return Batch(
            images=images,
            labels=self.labels.index_select(0, positions),
            indices=positions,
            is_synthetic=positions >= self.num_real,
            teacher_outputs=None if self.teacher_outputs is None else self.teacher_outputs.index_select(0, positions),
            generator_features=None if features is None else features.to(self.device).float(),
        )

    def _with_features(self, batch: Batch) -> Batch:
        """The batch of a step, with the stored features of its synthetic samples."""
        if self.generator_features is None:
            return batch
        num_real = len(range(self.rank, self.num_real_per_step, self.world_size))  # synthetic samples come after them
        rows = batch.indices[num_real:] - self.num_real
        return dataclasses.replace(batch, generator_features=self.generator_features.index_select(0, rows).float())


def ordered_batches(
    dataset: ImageSet, *, batch_size: int, device: torch.device | str | None = None, rank: int = 0, world_size: int = 1
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
    """One permutation of the samples from `offset` up to `end` after the other, `num_per_step` of them a step."""

    def __init__(self, offset: int, end: int, num_per_step: int, seed: int, *, device: torch.device):
        self.num_samples, self.num_per_step, self.offset = end - offset, num_per_step, offset
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


class _Union(Dataset):
    """The images of several sets, read on the CPU a batch at a time."""

    def __init__(self, sets: list[ImageSet], seed: int):
        self.sets = [(dataset.images, len(dataset)) for dataset in sets]
        self.seed = seed
        self.image_shape = sets[0].image_shape
        self.num_samples = sum(map(len, sets))

    def __getitem__(self, request: tuple[int | None, list[int]]) -> tuple[Tensor, Tensor]:
        """(step, B positions) to the positions as int64 [B], and the images uint8 [M, C, H, W] of the M among them that are
        here. A user's random transforms are drawn for the step; None: as whoever measures sees them."""
        step, indices = request
        requested = torch.tensor(indices, dtype=torch.int64)
        positions = requested[requested < self.num_samples]
        batch = torch.empty(len(positions), *self.image_shape, dtype=torch.uint8)
        offset = 0
        for images, length in self.sets:
            mine = (positions >= offset) & (positions < offset + length)
            if mine.any():
                mine_here = positions[mine] - offset
                is_fresh = step is not None and isinstance(images, LazyImages)
                key = mix(self.seed, "transform", step, offset) if is_fresh else 0
                batch[mine] = images.fresh(mine_here, key) if is_fresh else images[mine_here]
            offset += length
        return requested, batch


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


def _check_pairs(sets: list[ImageSet], sampling: str, batch_size: int, world_size: int) -> None:
    labels = torch.cat([dataset.labels for dataset in sets])
    if labels.is_floating_point():
        raise ValueError("pairs of one class need class ids, and these labels are scalars: use another method.")
    multiple = SAMPLINGS[sampling] * world_size
    if batch_size < 2 * world_size or (world_size > 1 and batch_size % multiple):
        raise ValueError(
            f"batch_size {batch_size} does not split into {sampling.split('_')[1]} of one class over "
            f"{world_size} processes: make it a multiple of {multiple}."
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
