"""A split is a function of labels, groups and seed; its parts are disjoint, complete and alike in their labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gankd.data.sets import ImageSet
from gankd.data.splits import few_shot, hold_out, stratified_indices

law = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**31)
class_labels = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(torch.tensor)
scalar_labels = st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=60).map(torch.tensor)


def numbered(labels: torch.Tensor, **fields) -> ImageSet:
    """A data set whose sample i is a picture of the number i."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return ImageSet(images, labels, **fields)


def numbers(dataset: ImageSet) -> list[int]:
    return dataset.images[:, 0, 0, 0].tolist()


@law
@given(st.data(), st.one_of(class_labels, scalar_labels), st.booleans(), seeds)
def test_the_parts_are_disjoint_complete_ordered_and_repeatable(data, labels, grouped, seed):
    groups = None
    if grouped:
        groups = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=len(labels), max_size=len(labels))))
        groups[0], groups[1] = 0, 1
    count = data.draw(st.integers(1, len(labels) - 1))

    rest, held_out = stratified_indices(labels, count, seed=seed, groups=groups)

    assert torch.equal(torch.cat([rest, held_out]).sort().values, torch.arange(len(labels)))
    assert torch.equal(rest, rest.sort().values) and torch.equal(held_out, held_out.sort().values)
    assert 0 < len(held_out) < len(labels)
    torch.manual_seed(seed + 1)  # the global state plays no part
    again = stratified_indices(labels, count, seed=seed, groups=groups)
    assert torch.equal(rest, again[0]) and torch.equal(held_out, again[1])


@law
@given(st.data(), class_labels, seeds)
def test_every_class_gives_its_share_and_keeps_a_sample(data, labels, seed):
    count = data.draw(st.integers(1, len(labels) - 1))
    rest, held_out = stratified_indices(labels, count, seed=seed)
    assert len(held_out) == count
    sizes, taken = torch.bincount(labels), torch.bincount(labels[held_out], minlength=int(labels.max()) + 1)
    shares = sizes * count / len(labels)
    assert (taken >= shares.floor()).all()
    if (shares.ceil() < sizes)[sizes > 0].all():  # every class can give its share, rounded up, and keep one
        assert (taken <= shares.ceil()).all()
    if count <= len(labels) - len(labels.unique()):
        assert set(labels[rest].tolist()) == set(labels.tolist())


@law
@given(st.data(), scalar_labels, seeds)
def test_scalars_are_held_out_evenly_along_the_sorted_labels(data, labels, seed):
    count = data.draw(st.integers(1, len(labels) - 1))
    _, held_out = stratified_indices(labels, count, seed=seed)
    assert len(held_out) == count
    ordered, taken = labels.sort().values, labels[held_out].sort().values
    edges = torch.arange(count + 1) * len(labels) // count
    assert (taken >= ordered[edges[:-1]]).all() and (taken <= ordered[edges[1:] - 1]).all()


@law
@given(st.data(), st.booleans(), seeds)
def test_groups_stay_whole_and_meet_the_size_to_within_half_a_group(data, scalar, seed):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=12))
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 7 - 3
    groups = groups[torch.tensor(data.draw(st.permutations(range(len(groups)))))]
    labels = torch.rand(len(groups)) if scalar else torch.zeros(len(groups), dtype=torch.int64)
    count = data.draw(st.integers(1, len(groups) - 1))
    rest, held_out = stratified_indices(labels, count, seed=seed, groups=groups)
    assert not set(groups[rest].tolist()) & set(groups[held_out].tolist())
    if count >= min(sizes) and len(groups[rest].unique()) > 1:
        assert abs(len(held_out) - count) <= max(sizes) / 2


def test_groups_of_scalars_are_spread_over_the_range():
    groups = torch.arange(400) // 10
    labels = groups.float()  # forty groups along the range, of which ten are held out
    for seed in range(20):
        _, held_out = stratified_indices(labels, 0.25, seed=seed, groups=groups)
        assert torch.equal(labels[held_out].unique().long() // 4, torch.arange(10))


def test_another_seed_draws_another_part():
    labels = torch.arange(100) % 5
    draws = {tuple(stratified_indices(labels, 20, seed=seed)[1].tolist()) for seed in range(10)}
    assert len(draws) == 10


def test_hold_out_takes_images_labels_and_groups_along():
    labels = torch.arange(40) % 4
    rest, held_out = hold_out(numbered(labels, groups=torch.arange(40) // 2), 0.25, seed=3)
    for part in (rest, held_out):
        index = torch.tensor(numbers(part))
        assert torch.equal(part.labels, index % 4) and torch.equal(part.groups, index // 2)
    assert len(held_out) == 10


@pytest.mark.parametrize("size", [10, 12, 0.99, 1.5, 0, -1])
def test_a_size_that_cannot_be_cut_names_its_key(size):
    with pytest.raises(ValueError, match="data.validation"):
        hold_out(numbered(torch.arange(10) % 2), size, seed=0, key="data.validation")


def test_one_group_cannot_be_divided():
    with pytest.raises(ValueError, match="data.test: all samples belong to one group"):
        hold_out(numbered(torch.zeros(5), groups=torch.zeros(5, dtype=torch.int64)), 2, seed=0, key="data.test")


def test_a_class_without_a_training_sample_is_named():
    dataset = numbered(torch.tensor([0, 0, 0, 2, 2, 2]), class_names=("cat", "dog", "fox"))
    with pytest.raises(ValueError, match="class 'dog' has no training sample"):
        hold_out(dataset, 2, seed=0)


@law
@given(st.lists(st.integers(2, 20), min_size=1, max_size=5), st.integers(1, 2), seeds)
def test_few_shot_keeps_the_same_number_of_every_class_and_is_nested(sizes, share, seed):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    kept = few_shot(numbered(labels), share * len(sizes), seed=seed)
    assert torch.bincount(kept.labels).tolist() == [share] * len(sizes)
    assert torch.equal(kept.labels, labels[torch.tensor(numbers(kept))])
    assert set(numbers(kept)) <= set(numbers(few_shot(numbered(labels), 2 * len(sizes), seed=seed)))


@law
@given(st.data(), scalar_labels, seeds)
def test_few_shot_covers_the_range_of_scalars(data, labels, seed):
    num_labelled = data.draw(st.integers(1, len(labels)))
    kept = few_shot(numbered(labels), num_labelled, seed=seed)
    assert len(set(numbers(kept))) == num_labelled
    edges = torch.arange(num_labelled + 1) * len(labels) // num_labelled
    ordered, taken = labels.sort().values, kept.labels.sort().values
    assert (taken >= ordered[edges[:-1]]).all() and (taken <= ordered[edges[1:] - 1]).all()


@pytest.mark.parametrize(
    ("num_labelled", "way_out"),
    [(31, "has 30 to train on"), (10, "the nearest that can is 9"), (11, "is 12"), (1, "is 3"), (29, "is 15")],
)
def test_a_number_of_labels_that_cannot_be_kept_names_the_nearest(num_labelled, way_out):
    labels = torch.tensor([0] * 15 + [1] * 10 + [2] * 5)
    with pytest.raises(ValueError, match=f"data.labelled: {num_labelled} .*{way_out}"):
        few_shot(numbered(labels), num_labelled, seed=0)


def test_a_class_with_too_few_samples_is_named():
    dataset = numbered(torch.tensor([0] * 15 + [1] * 3), class_names=("cat", "dog"))
    with pytest.raises(ValueError, match="class 'dog' of data has 3 to train on; at most 6"):
        few_shot(dataset, 8, seed=0)
