"""The laws of the batches: what a batch is made of, who gets what, and that nothing but (seed, step) decides."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gankd.data.live import live_set
from gankd.data.loader import BatchSource, epoch_permutation, ordered_batches
from gankd.data.sets import ImageSet, LazyImages
from generators.wrapping import wrap


def make_set(num_samples, *, shape=(1, 2, 2), first=0, name="real", lazy=False, outputs=False, labels=torch.int64):
    """Sample i shows the value first + i everywhere and has it as its label."""
    values = first + torch.arange(num_samples)
    images = values.view(-1, 1, 1, 1).expand(-1, *shape).to(torch.uint8)
    if lazy:
        tensor = images
        images = LazyImages(lambda index: tensor[index], tuple(tensor.shape))
    teacher_outputs = torch.stack([values, -values], dim=1).float() if outputs else None
    return ImageSet(images, values.to(labels), teacher_outputs=teacher_outputs, name=name)


def make_pair(num_real, num_synthetic, **keywords):
    real = make_set(num_real, **keywords)
    return real, make_set(num_synthetic, first=num_real, name="synthetic", **keywords)


def fields(batch):
    return [getattr(batch, field.name) for field in dataclasses.fields(batch)]


def assert_same_batches(first, second):
    for one, other in itertools.zip_longest(first, second):
        for left, right in zip(fields(one), fields(other), strict=True):
            assert (left is None and right is None) or torch.equal(left, right)


def drawn(source, num_samples):
    """The first `num_samples` positions of the source's stream."""
    num_steps = -(-num_samples // source.batch_size)
    return torch.cat([batch.indices for batch in source.stream(0, num_steps)])[:num_samples]


counts, batch_sizes, seeds = st.integers(1, 20), st.integers(1, 12), st.integers(-(2**40), 2**40)


# permutations


@given(num_samples=st.integers(1, 50), seed=seeds, epoch=st.integers(0, 10**6))
def test_a_permutation_is_a_function_of_its_arguments_and_leaves_the_default_generator_alone(num_samples, seed, epoch):
    state = torch.get_rng_state()
    permutation = epoch_permutation(num_samples, seed=seed, epoch=epoch)
    assert torch.equal(permutation.sort().values, torch.arange(num_samples))
    torch.rand(1)
    assert torch.equal(epoch_permutation(num_samples, seed=seed, epoch=epoch), permutation)
    torch.set_rng_state(state)
    epoch_permutation(num_samples, seed=seed, epoch=epoch)
    assert torch.equal(torch.get_rng_state(), state)


def test_neighbouring_seeds_and_epochs_have_unrelated_permutations():
    permutations = {
        tuple(epoch_permutation(30, seed=seed, epoch=epoch).tolist()) for seed in range(10) for epoch in range(10)
    }
    assert len(permutations) == 100  # (1, 2) is not (2, 1), (1, 11) not (11, 1)


def test_a_permutation_is_the_same_in_every_process():
    assert epoch_permutation(8, seed=3, epoch=5).tolist() == [1, 5, 2, 6, 0, 3, 4, 7]


# composition


@settings(deadline=None)
@given(num_real=counts, num_synthetic=st.integers(0, 20), batch_size=batch_sizes, seed=seeds)
def test_the_union_is_seen_once_a_pass_in_batches_that_are_always_full(num_real, num_synthetic, batch_size, seed):
    real, synthetic = make_pair(num_real, num_synthetic)
    source = BatchSource(real, synthetic if num_synthetic else None, batch_size=batch_size, seed=seed)
    total = num_real + num_synthetic
    for passed in drawn(source, 3 * total).view(3, total):
        assert torch.equal(passed.sort().values, torch.arange(total))
    assert all(len(batch.images) == batch_size for batch in source.stream(0, 5))


@settings(deadline=None)
@given(
    num_real=counts, num_synthetic=counts, batch_size=st.integers(2, 12), fraction=st.floats(0, 1), seed=seeds,
)  # fmt: skip
def test_a_fraction_is_exact_in_every_batch_and_each_set_goes_through_its_own_passes(
    num_real, num_synthetic, batch_size, fraction, seed
):
    share = round(fraction * batch_size)
    if share in (0, batch_size):
        fraction = share / batch_size  # a fraction that loses one kind to rounding is refused, see below
    source = BatchSource(
        *make_pair(num_real, num_synthetic), batch_size=batch_size, synthetic_fraction=fraction, seed=seed
    )
    batches = list(source.stream(0, 2 * (num_real + num_synthetic)))
    for batch in batches:
        assert len(batch.images) == batch_size and batch.is_synthetic.sum() == share
    positions, is_synthetic = (torch.cat([getattr(b, name) for b in batches]) for name in ("indices", "is_synthetic"))
    for mine, size, offset in ((~is_synthetic, num_real, 0), (is_synthetic, num_synthetic, num_real)):
        stream = positions[mine]
        for passed in stream[: len(stream) // size * size].view(-1, size):
            assert torch.equal(passed.sort().values, offset + torch.arange(size))


@settings(deadline=None)
@given(num_real=counts, num_synthetic=counts, fraction=st.sampled_from([None, 0, 0.5, 1]), outputs=st.booleans())
def test_a_batch_holds_what_its_indices_say(num_real, num_synthetic, fraction, outputs):
    real, synthetic = make_pair(num_real, num_synthetic, outputs=outputs)
    source = BatchSource(real, synthetic, batch_size=6, synthetic_fraction=fraction)
    for batch in source.stream(0, 4):
        assert batch.images.dtype == torch.uint8 and batch.images.shape == (6, 1, 2, 2)
        assert (batch.images == batch.indices.view(6, 1, 1, 1)).all()
        assert torch.equal(batch.labels, batch.indices)
        assert torch.equal(batch.is_synthetic, batch.indices >= num_real)
        if outputs:
            assert torch.equal(batch.teacher_outputs, torch.stack([batch.indices, -batch.indices], dim=1).float())
        else:
            assert batch.teacher_outputs is None


def test_one_set_alone_is_enough():
    assert not BatchSource(make_set(5), batch_size=3).batch(0).is_synthetic.any()
    alone = BatchSource(None, make_set(5, name="synthetic"), batch_size=3)
    assert alone.batch(0).is_synthetic.all() and alone.steps_per_epoch == 2


def test_teacher_outputs_are_there_only_where_every_set_has_them():
    real, synthetic = make_set(4), make_set(4, name="synthetic", outputs=True)
    assert BatchSource(real, synthetic, batch_size=4).batch(0).teacher_outputs is None
    assert BatchSource(None, synthetic, batch_size=4).batch(0).teacher_outputs.shape == (4, 2)


def test_an_epoch_is_a_pass_over_the_real_data_in_every_arm():
    real, synthetic = make_pair(10, 200)
    arms = [BatchSource(real, batch_size=4), BatchSource(real, synthetic, batch_size=4)]
    arms.append(BatchSource(real, synthetic, batch_size=4, synthetic_fraction=0.75))
    assert [arm.steps_per_epoch for arm in arms] == [3, 3, 3]


# what decides


@settings(deadline=None)
@given(seed=seeds, first=st.integers(0, 40), fraction=st.sampled_from([None, 0.5]))
def test_a_batch_is_a_function_of_seed_and_step_so_that_a_resumed_stream_goes_on_where_it_stopped(
    seed, first, fraction
):
    make = lambda: BatchSource(*make_pair(7, 11), batch_size=4, synthetic_fraction=fraction, seed=seed)  # noqa: E731
    whole = list(make().stream(0, first + 5))
    assert len(whole) == first + 5
    assert_same_batches(make().stream(first, first + 5), whole[first:])
    source = make()
    backwards = [source.batch(step) for step in reversed(range(first, first + 5))]
    assert_same_batches(reversed(backwards), whole[first:])


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_two_seeds_differ(fraction):
    sources = [
        BatchSource(*make_pair(50, 50), batch_size=20, synthetic_fraction=fraction, seed=seed) for seed in (0, 1)
    ]
    first, second = (source.batch(0).indices for source in sources)
    assert not torch.equal(first, second)


def test_the_two_sets_are_shuffled_independently():
    batch = BatchSource(*make_pair(50, 50), batch_size=40, synthetic_fraction=0.5).batch(0)
    assert not torch.equal(batch.indices[:20], batch.indices[20:] - 50)


@settings(deadline=None)
@given(
    world_size=st.sampled_from([1, 2, 4]), share=st.integers(1, 5), step=st.integers(0, 30),
    fraction=st.sampled_from([None, 0, 0.5, 1]),
)  # fmt: skip
def test_the_ranks_split_the_one_process_batch(world_size, share, step, fraction):
    keywords = {"batch_size": 2 * share * world_size, "synthetic_fraction": fraction, "seed": 3}
    whole = BatchSource(*make_pair(9, 14), **keywords).batch(step)
    for rank in range(world_size):
        mine = BatchSource(*make_pair(9, 14), **keywords, rank=rank, world_size=world_size).batch(step)
        for part, full in zip(fields(mine), fields(whole), strict=True):
            assert (part is None and full is None) or torch.equal(part, full[rank::world_size])
        assert len(mine.images) == 2 * share


# sets beyond the memory budget


@pytest.mark.parametrize("fraction", [None, 0.5])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_reading_by_workers_gives_the_batches_of_the_resident_path(fraction, lazy, workers):
    keywords = {"batch_size": 6, "synthetic_fraction": fraction, "seed": 5}
    resident = BatchSource(*make_pair(11, 17, outputs=True), **keywords)
    sets = make_pair(11, 17, outputs=True, lazy=lazy)
    read = BatchSource(*sets, **keywords, memory_budget=0, workers=workers)
    assert resident.resident and not read.resident
    state = torch.get_rng_state()
    assert_same_batches(read.stream(3, 12), resident.stream(3, 12))
    assert_same_batches([read.batch(8)], [resident.batch(8)])
    assert torch.equal(torch.get_rng_state(), state)  # neither path draws from the default generator


def test_reading_by_workers_splits_over_the_ranks_as_well():
    keywords = {"batch_size": 6, "memory_budget": 0, "workers": 0}
    whole = BatchSource(*make_pair(5, 8), **keywords).batch(4)
    for rank in range(3):
        source = BatchSource(*make_pair(5, 8), **keywords, rank=rank, world_size=3)
        (mine,) = source.stream(4, 5)
        assert torch.equal(mine.images, whole.images[rank::3]) and torch.equal(mine.indices, whole.indices[rank::3])


def test_lazy_images_that_fit_the_budget_of_both_sets_are_read_once():
    reads = []

    def read(index):
        reads.append(index)
        return torch.full((1, 2, 2), index, dtype=torch.uint8)

    real, synthetic = ImageSet(LazyImages(read, (5, 1, 2, 2)), torch.arange(5)), make_set(3, first=5)
    source = BatchSource(real, synthetic, batch_size=4, memory_budget=8 * 4)
    assert source.resident and all((b.images[:, 0, 0, 0] == b.indices).all() for b in source.stream(0, 10))
    assert sorted(reads) == [0, 1, 2, 3, 4]
    assert not BatchSource(real, synthetic, batch_size=4, memory_budget=8 * 4 - 1).resident


# what is refused


@pytest.mark.parametrize(
    "real, synthetic, keywords, message",
    [
        (None, None, {}, "at least one"),
        (make_set(0), None, {}, "real: the set holds no sample"),
        (make_set(4), make_set(0, name="fakes"), {}, "fakes: the set holds no sample"),
        (make_set(4), make_set(4, shape=(3, 2, 2)), {}, r"\(1, 2, 2\) .* \(3, 2, 2\)"),
        (make_set(4), make_set(4, labels=torch.float32), {}, "torch.int64 .* torch.float32"),
        (make_set(4), None, {"batch_size": 6, "world_size": 4}, "batch_size 6 .* 4 processes"),
        (make_set(4), None, {"batch_size": 0}, "batch_size 0"),
        (make_set(4), make_set(4), {"synthetic_fraction": 1.5}, r"1.5; expected a number in \[0, 1\]"),
        (make_set(4), make_set(4), {"synthetic_fraction": 0.01}, "no synthetic sample"),
        (make_set(4), make_set(4), {"synthetic_fraction": 0.99}, "no real sample"),
        (make_set(4), None, {"synthetic_fraction": 0.5}, "no synthetic set"),
        (None, make_set(4), {"synthetic_fraction": 0.5}, "no real set"),
    ],
)
def test_sets_and_numbers_that_do_not_fit_together_are_refused_in_one_sentence(real, synthetic, keywords, message):
    with pytest.raises(ValueError, match=message):
        BatchSource(real, synthetic, **{"batch_size": 8, **keywords})


def test_teacher_outputs_of_two_teachers_are_refused():
    real, synthetic = make_pair(4, 4, outputs=True)
    real = dataclasses.replace(real, teacher_outputs=torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"\(4, 5\) .* \(4, 2\)"):
        BatchSource(real, synthetic, batch_size=4)


# evaluation


@given(
    num_samples=st.integers(0, 30), batch_size=batch_sizes, world_size=st.integers(1, 4), lazy=st.booleans(),
    outputs=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_ordered_batches_hold_every_sample_once_in_order(num_samples, batch_size, world_size, lazy, outputs):
    dataset = dataclasses.replace(make_set(num_samples, lazy=lazy, outputs=outputs), is_synthetic=lazy)
    batches = list(ordered_batches(dataset, batch_size=batch_size))
    assert [len(batch.images) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sum(len(batch.indices) for batch in batches) == num_samples
    for start, batch in zip(range(0, num_samples, batch_size), batches, strict=True):
        assert torch.equal(batch.indices, torch.arange(start, min(start + batch_size, num_samples)))
        assert torch.equal(batch.labels, batch.indices)
        assert (batch.images == batch.indices.view(-1, 1, 1, 1)).all()
        assert (batch.is_synthetic == lazy).all() and (batch.teacher_outputs is not None) == outputs
    shares = [
        torch.cat([torch.empty(0), *(batch.indices for batch in ordered_batches(
            dataset, batch_size=batch_size, rank=rank, world_size=world_size))])
        for rank in range(world_size)
    ]  # fmt: skip
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(num_samples).float())


# a generator that lives


class Source(nn.Module):
    """What it draws is a function of its features: an image shows the first of them everywhere."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, z, y):
        first = self.first(z[:, :2, None, None].expand(-1, 2, 2, 2))
        return torch.tanh(self.second(first[:, :1].repeat(1, 3, 2, 2) + y.view(-1, 1, 1, 1)))[:, :1]


def drawing(num_samples, *, num_classes=2, **settings):
    """A live set and the same samples stored."""
    scalars = {"label_range": (-1.0, 3.0)} if num_classes is None else {}
    generator = wrap(
        Source(), resolution=4, latent_dim=3, num_classes=num_classes, image_channels=1,
        feature_names=("first", "second"), **scalars,
    )  # fmt: skip
    live = live_set(generator, num_samples, **settings)
    images, features = live.images.draw(torch.arange(num_samples))
    stored = ImageSet(
        images, live.labels, generator_features=features, feature_widths=live.feature_widths, is_synthetic=True
    )
    return live, stored


@pytest.mark.parametrize("num_classes", [2, None])
@pytest.mark.parametrize("fraction, batch_size", [(0.5, 6), (0.4, 7), (1, 5), (None, 7)])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (0, 2), (1, 2)])
def test_a_live_set_gives_the_batches_of_the_stored_one(num_classes, fraction, batch_size, rank, world_size):
    live, stored = drawing(11, num_classes=num_classes, seed=4)
    batch_size *= world_size
    real = None if fraction is None else make_set(9, shape=(1, 4, 4), labels=live.labels.dtype)
    keywords = {
        "synthetic_fraction": fraction,
        "batch_size": batch_size,
        "rank": rank,
        "world_size": world_size,
        "seed": 2,
    }
    sources = [BatchSource(real, synthetic, **keywords) for synthetic in (live, stored)]
    assert_same_batches(*(source.stream(3, 9) for source in sources))
    for batch in sources[0].stream(0, 4):
        assert len(batch.generator_features) == batch.is_synthetic.sum() > 0
        assert batch.is_synthetic[-len(batch.generator_features) :].all()


@pytest.mark.parametrize("fraction", [0.3, 1])
def test_features_belong_to_their_images(fraction):
    for synthetic in drawing(13):
        source = BatchSource(make_set(9, shape=(1, 4, 4)), synthetic, synthetic_fraction=fraction, batch_size=10)
        assert source.feature_widths == (2, 3)
        for batch in source.stream(0, 5):
            of_images = batch.images[batch.is_synthetic][:, 0, 0, 0] / 127.5 - 1
            assert batch.generator_features.dtype == torch.float32
            torch.testing.assert_close(torch.tanh(batch.generator_features[:, 2]), of_images, rtol=0, atol=0.01)
            labels = batch.labels[batch.is_synthetic]
            latents = batch.generator_features[:, 2] - labels
            torch.testing.assert_close(latents, batch.generator_features[:, 0], rtol=0, atol=0.01)


def test_the_ranks_split_the_features_too():
    for synthetic in drawing(13):
        keywords = {"synthetic_fraction": 0.5, "batch_size": 8}
        whole = BatchSource(make_set(9, shape=(1, 4, 4)), synthetic, **keywords).batch(5)
        for rank in range(2):
            mine = BatchSource(make_set(9, shape=(1, 4, 4)), synthetic, **keywords, rank=rank, world_size=2).batch(5)
            assert torch.equal(mine.images, whole.images[rank::2])
            assert torch.equal(mine.generator_features, whole.generator_features[rank::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_live_set_goes_with_real_images_beyond_the_memory_budget(workers):
    live, stored = drawing(11)
    keywords = {"synthetic_fraction": 0.5, "batch_size": 6}
    resident = BatchSource(make_set(9, shape=(1, 4, 4)), stored, **keywords)
    read = BatchSource(
        make_set(9, shape=(1, 4, 4), lazy=True), live, **keywords, memory_budget=0, workers=workers
    )  # fmt: skip
    assert resident.resident and not read.resident
    state = torch.get_rng_state()
    assert_same_batches(read.stream(3, 8), resident.stream(3, 8))
    assert_same_batches([read.batch(8)], [resident.batch(8)])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_live_set_is_seen_in_order_and_its_first_features_are_those_of_the_stored_one():
    live, stored = drawing(11)
    sources = [
        BatchSource(make_set(3, shape=(1, 4, 4)), part, batch_size=4, synthetic_fraction=0.5) for part in (live, stored)
    ]
    for first, second in zip(*(source.in_order(4) for source in sources), strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.indices, second.indices)
    for count in (5, 100):
        features = [source.some_generator_features(count) for source in sources]
        assert torch.equal(*features) and features[0].shape == (min(count, 11), 5)


def test_samples_are_a_function_of_seed_and_number():
    (live, _), (longer, _), (other, _) = drawing(5), drawing(300), drawing(5, seed=1)
    assert torch.equal(live.images[torch.tensor([4, 2])], longer.images[torch.tensor([4, 2])])
    assert torch.equal(live.images[3], longer.images[torch.arange(290)][3])
    assert not torch.equal(live.images[torch.arange(5)], other.images[torch.arange(5)])


def test_features_are_there_only_where_every_batch_has_as_many():
    _, stored = drawing(7)
    real = make_set(9, shape=(1, 4, 4))
    assert BatchSource(real, stored, batch_size=4).batch(0).generator_features is None
    assert BatchSource(real, stored, batch_size=4, synthetic_fraction=0.5).batch(0).generator_features.shape == (2, 5)
    assert BatchSource(None, stored, batch_size=4).batch(0).generator_features.shape == (4, 5)


@pytest.mark.parametrize("keywords", [{}, {"synthetic_fraction": 0.5, "sampling": "class_pairs"}])
def test_a_live_set_without_its_share_of_a_batch_is_refused(keywords):
    live, _ = drawing(7)
    with pytest.raises(ValueError, match="live generator .* give synthetic_fraction .*, or write them to disk"):
        real = dataclasses.replace(make_set(8, shape=(1, 4, 4)), labels=torch.arange(8) % 2)
        BatchSource(real, live, batch_size=4, **keywords)


def test_a_generator_without_features_or_samples_is_refused():
    plain = wrap(Source(), resolution=4, latent_dim=3, num_classes=2, image_channels=1)
    with pytest.raises(ValueError, match="no feature_names: .* name them"):
        live_set(plain, 4)
    with pytest.raises(ValueError, match="num_samples is 0"):
        drawing(0)
