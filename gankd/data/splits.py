"""Train, validation and test: which sample goes where is a function of the labels, the groups and a seed alone."""

import dataclasses

import torch
from torch import Tensor

from gankd.data.sets import ImageSet


@dataclasses.dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one data set; the test part is read once, for the report."""

    train: ImageSet
    """What the student may learn from: few labels, where the experiment says so."""
    validation: ImageSet
    """What choices are made on; empty with `data.validation: 0`."""
    test: ImageSet
    pool: ImageSet
    """All training samples, `train` among them: what a teacher or a generator made by somebody else may have seen."""


def stratified_indices(
    labels: Tensor, size: float, *, seed: int, groups: Tensor | None = None, key: str = "size"
) -> tuple[Tensor, Tensor]:
    """Divide the samples into a rest and a held-out part whose labels are distributed alike.

    Class ids: every class gives its share, rounded by largest remainder, and keeps one sample in the rest where it
    can. Scalars: the sorted labels are cut into as many strata of equal size as samples are held out, and each
    stratum gives one. With `groups` whole groups are held out (scalars: spread over the groups' mean labels), and the
    held-out part, at least one group, misses the size by at most half a group.

    labels: class ids int64 [N] or scalars float32 [N].
    size: of the held-out part, a share of N below 1 or a number of samples from 1.
    groups: int64 [N]; the samples of one group stay together.
    key: the name of `size` in an error message.

    Returns indices int64 of the rest and of the held-out part, each ascending.
    Raises ValueError: a size that is not positive or leaves nothing in the rest, or fewer than two groups.
    """
    count = _number_of_samples(size, len(labels), key)
    generator = torch.Generator().manual_seed(seed)
    if groups is not None:
        held_out = _whole_groups(labels, groups, count, generator, key)
    elif labels.dtype.is_floating_point:
        held_out = _one_of_each_stratum(labels, count, generator)
    else:
        held_out = _share_of_each_class(labels, count, generator)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    is_held_out[held_out] = True
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()


def hold_out(dataset: ImageSet, size: float, *, seed: int, key: str = "size") -> tuple[ImageSet, ImageSet]:
    """Divide a data set into (rest, held out) as `stratified_indices` does, by its labels and its groups.
    Raises ValueError: as `stratified_indices`, or a class of `class_names` that has no sample in the rest."""
    indices = stratified_indices(dataset.labels, size, seed=seed, groups=dataset.groups, key=key)
    rest, held_out = (dataset.subset(part) for part in indices)
    check_classes(rest, dataset, key)
    return rest, held_out


def check_classes(rest: ImageSet, dataset: ImageSet, key: str) -> None:
    """Raise a ValueError for a class of which cutting `key` from `dataset` left no sample to train on."""
    sizes = _class_sizes(rest) if dataset.class_names else []
    if 0 in sizes:
        class_id = sizes.index(0)
        raise ValueError(
            f"{dataset.name}: class '{dataset.class_names[class_id]}' has no training sample "
            f"({_class_sizes(dataset)[class_id]} before {key} was cut): add images of it or drop the class."
        )


def few_shot(dataset: ImageSet, num_labelled: int, *, seed: int) -> ImageSet:
    """Keep `num_labelled` samples: the same number of every class, or one of each stratum of the sorted scalars.

    Classification draws are nested: with one seed, 100 labelled samples are among the 200.
    Raises ValueError: more than there is, a number that the classes do not divide, or a class with too few samples.
    """
    if num_labelled > len(dataset):
        raise ValueError(f"data.labelled: {num_labelled} samples asked, {dataset.name} has {len(dataset)} to train on.")
    generator = torch.Generator().manual_seed(seed)
    if dataset.labels.dtype.is_floating_point:
        kept = _one_of_each_stratum(dataset.labels, num_labelled, generator)
        return dataset.subset(kept.sort().values)
    sizes = _class_sizes(dataset)
    share, remainder = divmod(num_labelled, len(sizes))
    if remainder:
        nearest = max(1, min(share + (2 * remainder >= len(sizes)), min(sizes))) * len(sizes)
        raise ValueError(
            f"data.labelled: {num_labelled} samples cannot be the same number of each of {dataset.name}'s "
            f"{len(sizes)} classes; the nearest that can is {nearest}."
        )
    if min(sizes) < share:
        smallest = sizes.index(min(sizes))
        name = dataset.class_names[smallest] if dataset.class_names else smallest
        raise ValueError(
            f"data.labelled: {num_labelled} samples are {share} a class, but class '{name}' of {dataset.name} has "
            f"{min(sizes)} to train on; at most {min(sizes) * len(sizes)} can be asked."
        )
    kept = [members[:share] for members in _shuffled_classes(dataset.labels, len(sizes), generator)]
    return dataset.subset(torch.cat(kept).sort().values)


def _number_of_samples(size: float, num_samples: int, key: str) -> int:
    if size >= 1 and size != int(size):
        raise ValueError(f"{key}: {size} is neither a share below 1 nor a whole number of samples.")
    count = int(size) if size >= 1 else max(1, round(size * num_samples))
    if not size > 0:
        raise ValueError(f"{key}: {size} is not positive; give a share below 1 or a number of samples.")
    if count >= num_samples:
        raise ValueError(f"{key}: {size:g} asked of {num_samples} samples; at least one must remain for training.")
    return count


def _shuffled_classes(labels: Tensor, num_classes: int, generator: torch.Generator) -> list[Tensor]:
    """Each class's sample indices in random order."""
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == class_id] for class_id in range(num_classes)]


def _share_of_each_class(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    classes = _shuffled_classes(labels, int(labels.max()) + 1, generator)
    sizes = [len(members) for members in classes]
    shares = [size * count // len(labels) for size in sizes]
    for _ in range(count - sum(shares)):  # what rounding down lost, not from a class that would be emptied
        classes_left = [k for k, size in enumerate(sizes) if shares[k] < size - 1]
        classes_left = classes_left or [k for k, size in enumerate(sizes) if shares[k] < size]
        shares[max(classes_left, key=lambda k: sizes[k] * count - shares[k] * len(labels))] += 1
    return torch.cat([members[:share] for members, share in zip(classes, shares, strict=True)])


def _one_of_each_stratum(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Cut the sorted values into `count` strata of equal size (up to one sample); one random index of each."""
    edges = torch.arange(count + 1) * len(values) // count
    offsets = torch.rand(count, generator=generator, dtype=torch.float64) * edges.diff()
    return values.sort(stable=True).indices[edges[:-1] + offsets.long()]


def _whole_groups(labels: Tensor, groups: Tensor, count: int, generator: torch.Generator, key: str) -> Tensor:
    names, group_of_sample = groups.unique(return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{key}: all samples belong to one group, which cannot be divided.")
    sizes = torch.bincount(group_of_sample)
    order = torch.randperm(len(names), generator=generator)
    if labels.dtype.is_floating_point:  # first one group of each stratum of the groups' mean labels
        means = torch.bincount(group_of_sample, weights=labels.double()) / sizes
        expected = min(len(names), max(1, round(count * len(names) / len(labels))))
        first = _one_of_each_stratum(means[order], expected, generator)
        is_first = torch.zeros(len(names), dtype=torch.bool)
        is_first[first] = True
        order = torch.cat([order[is_first], order[~is_first]])
    held_out, left, missing = [], [], count
    for group in order.tolist():
        if sizes[group] <= missing:
            held_out.append(group)
            missing -= int(sizes[group])
        else:
            left.append(group)
    smallest = min(left, key=lambda group: int(sizes[group]))
    if not held_out or (len(left) > 1 and int(sizes[smallest]) - missing < missing):
        held_out.append(smallest)
    return torch.isin(group_of_sample, torch.tensor(held_out)).nonzero().flatten()


def _class_sizes(dataset: ImageSet) -> list[int]:
    """Number of samples of every class; none for scalar labels."""
    if dataset.labels.dtype.is_floating_point:
        return []
    return torch.bincount(dataset.labels, minlength=len(dataset.class_names or ())).tolist()
