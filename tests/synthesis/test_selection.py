"""The rules that decide which candidates stay, as laws: rejection sampling (M1), filtering (M2) and taking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gankd.synthesis.selection import (
    Scores,
    balanced_fake_counts,
    class_error_quantiles,
    error_quantile,
    filter_by_teacher_error,
    ratio_bounds,
    select_rho,
    subsample,
    take,
    teacher_filter,
)
from tests.synthesis.oracles import acceptance, rejection_sample

seeds = st.integers(0, 2**32)
rhos = st.floats(0.05, 1)
quick = settings(deadline=None, max_examples=60)


def make_scores(
    *,
    ratios: Tensor | None = None,
    errors: Tensor | None = None,
    labels: Tensor | None = None,
    uniforms: Tensor | None = None,
    groups: Tensor | None = None,
    chunks: Tensor | None = None,
) -> Scores:
    """Scores of which a test names only what matters to it."""
    given_values = [value for value in (ratios, errors, labels, uniforms) if value is not None]
    count = len(given_values[0])
    zeros = torch.zeros(count, dtype=torch.int64)
    labels = zeros if labels is None else labels
    return Scores(
        labels=labels,
        groups=labels if groups is None else groups,
        chunks=zeros if chunks is None else chunks,
        errors=torch.zeros(count) if errors is None else errors,
        uniforms=torch.zeros(count) if uniforms is None else uniforms,
        ratios=ratios,
    )


def draw(seed: int, count: int) -> tuple[torch.Generator, Tensor]:
    """A generator, and heavy-tailed ratios of which a tenth is 0, as a ReLU gives them."""
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.randn(count, generator=generator).exp()
    return generator, ratios * (torch.rand(count, generator=generator) > 0.1)


# --- M1: rejection ----------------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, rounds=st.integers(1, 6), size=st.integers(1, 8), burn_in=st.floats(0.01, 20))
def test_growing_bounds_on_one_label_group_are_the_rejection_sampling_of_the_paper(seed, rounds, size, burn_in) -> None:
    generator, ratios = draw(seed, rounds * size)
    uniforms = torch.rand(rounds * size, generator=generator)
    scores = make_scores(ratios=ratios, uniforms=uniforms, chunks=torch.arange(rounds).repeat_interleave(size))
    accepted = subsample(scores, torch.tensor([burn_in]), growing=True)
    expected = rejection_sample(
        burnin_ratios=torch.tensor([burn_in]),
        density_ratios=ratios.view(rounds, size),
        uniforms=uniforms.view(rounds, size),
        num_samples=rounds * size,
    )
    assert accepted.nonzero().flatten().tolist() == expected.tolist()


@quick
@given(seed=seeds, rounds=st.integers(1, 6), size=st.integers(1, 8), burn_in=st.floats(0.01, 20))
def test_accepting_batch_after_batch_is_the_same_rule(seed: int, rounds: int, size: int, burn_in: float) -> None:
    generator, ratios = draw(seed, rounds * size)
    uniforms = torch.rand(rounds * size, generator=generator)
    bound, kept = torch.tensor(burn_in), []
    for ratio, uniform in zip(ratios.view(rounds, size), uniforms.view(rounds, size), strict=True):
        accepted, probabilities, bound = acceptance(density_ratios=ratio, uniforms=uniform, max_ratio=bound)
        assert (probabilities <= 1).all()
        kept.append(accepted)
    expected = rejection_sample(
        burnin_ratios=torch.tensor([burn_in]),
        density_ratios=ratios.view(rounds, size),
        uniforms=uniforms.view(rounds, size),
        num_samples=rounds * size,
    )
    assert torch.cat(kept).nonzero().flatten().tolist() == expected.tolist()
    assert bound == max(torch.tensor(burn_in), ratios.max())


@quick
@given(seed=seeds, num_groups=st.integers(1, 4), growing=st.booleans())
def test_groups_do_not_influence_one_another(seed: int, num_groups: int, growing: bool) -> None:
    count = 24
    generator, ratios = draw(seed, count)
    groups = torch.randint(num_groups, (count,), generator=generator)
    uniforms, chunks = torch.rand(count, generator=generator), torch.arange(count) // 6
    bounds = torch.rand(num_groups, generator=generator) + 0.1
    together = subsample(
        make_scores(ratios=ratios, uniforms=uniforms, groups=groups, chunks=chunks), bounds, growing=growing
    )
    for group in range(num_groups):
        members = (groups == group).nonzero().flatten()
        if len(members) == 0:
            continue
        alone = make_scores(ratios=ratios[members], uniforms=uniforms[members], chunks=chunks[members])
        assert torch.equal(subsample(alone, bounds[group : group + 1], growing=growing), together[members])


@quick
@given(seed=seeds, more=st.integers(1, 12), growing=st.booleans())
def test_what_was_accepted_stays_accepted_when_more_candidates_are_drawn(seed: int, more: int, growing: bool) -> None:
    generator, ratios = draw(seed, 12 + more)
    uniforms, chunks = torch.rand(12 + more, generator=generator), torch.arange(12 + more) // 3
    bounds = torch.tensor([0.5])
    few = make_scores(ratios=ratios[:12], uniforms=uniforms[:12], chunks=chunks[:12])
    many = make_scores(ratios=ratios, uniforms=uniforms, chunks=chunks)
    first = subsample(few, bounds, growing=growing)
    assert torch.equal(subsample(many, bounds, growing=growing)[:12], first)


@pytest.mark.parametrize("growing", [False, True])
def test_the_accepted_share_is_the_mean_ratio_over_the_bound(growing: bool) -> None:
    count = 40_000
    generator, ratios = draw(0, count)
    bound = ratios.max() * 1.25  # known beforehand, so that nothing grows
    uniforms = torch.rand(count, generator=generator)
    accepted = subsample(make_scores(ratios=ratios, uniforms=uniforms), bound[None], growing=growing)
    expected = (ratios / bound).mean().item()
    assert accepted.float().mean().item() == pytest.approx(expected, abs=4 * (expected / count) ** 0.5)


def test_accepted_samples_are_distributed_like_the_real_ones() -> None:
    """Two points: the generator draws a with 0.8 and b with 0.2, reality the other way round; ratios 1/4 and 4."""
    count = 40_000
    generator = torch.Generator().manual_seed(0)
    is_b = torch.rand(count, generator=generator) < 0.2
    ratios = torch.where(is_b, 4.0, 0.25)
    uniforms = torch.rand(count, generator=generator)
    accepted = subsample(make_scores(ratios=ratios, uniforms=uniforms), torch.tensor([4.0]), growing=True)
    assert is_b[accepted].float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_beyond_a_fixed_bound_everything_passes_and_a_ratio_of_zero_does_not() -> None:
    ratios, uniforms = torch.tensor([3.0, 1.0, 0.0, 0.5]), torch.tensor([0.999, 0.999, 0.001, 0.6])
    scores = make_scores(ratios=ratios, uniforms=uniforms)
    assert subsample(scores, torch.tensor([1.0]), growing=False).tolist() == [True, True, False, False]
    assert subsample(scores, torch.tensor([1.0]), growing=True).tolist() == [True, False, False, False]


def test_subsampling_asks_only_for_the_groups_that_have_candidates() -> None:
    scores = make_scores(ratios=torch.ones(3), groups=torch.tensor([0, 2, 2]))
    assert subsample(scores, torch.ones(4), growing=True).all()


def test_bounds_are_a_quantile_of_each_label_group() -> None:
    ratios, groups = torch.tensor([1.0, 2.0, 3.0, 10.0, 30.0]), torch.tensor([0, 0, 0, 1, 1])
    assert ratio_bounds(ratios, groups, 2, quantile=1.0).tolist() == [3, 30]
    assert ratio_bounds(ratios, groups, 2, quantile=0.5).tolist() == [2, 20]


def test_a_label_group_whose_ratios_are_dead_is_named() -> None:
    ratios, groups = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match=r"0 almost everywhere for label groups \[1\].*subsample"):
        ratio_bounds(ratios, groups, 2, quantile=1.0)


def test_a_label_group_without_a_burn_in_sample_is_not_called_dead() -> None:
    """It says nothing of the ratio; what helps is a larger burn-in or fewer label bins."""
    with pytest.raises(ValueError, match=r"\[1\].*(burn_in|label_bins)"):
        ratio_bounds(torch.tensor([1.0]), torch.tensor([0]), 2, quantile=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_ratio_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        ratio_bounds(torch.tensor([1.0, value]), torch.zeros(2, dtype=torch.int64), 1, quantile=0.9)


# --- M2: filtering ----------------------------------------------------------------------------------------------------


@quick
@given(errors=st.lists(st.floats(0, 100), min_size=1, max_size=30), rho=rhos)
def test_the_threshold_is_the_quantile_with_linear_interpolation(errors: list[float], rho: float) -> None:
    found = error_quantile(errors=torch.tensor(errors, dtype=torch.float64), rho=rho)
    assert found.item() == pytest.approx(np.quantile(errors, rho), rel=1e-9, abs=1e-9)


def test_thresholds_by_hand() -> None:
    errors, labels = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 7.0]), torch.tensor([0, 0, 0, 1, 1, 3])
    thresholds = class_error_quantiles(errors=errors, labels=labels, rho=0.75, num_classes=4)
    assert thresholds.tolist() == [2.5, 17.5, -torch.inf, 7]
    kept = filter_by_teacher_error(errors=errors, threshold=thresholds, labels=labels)
    assert kept.tolist() == [True, True, False, True, False, False]
    assert filter_by_teacher_error(errors=errors, threshold=3.0).tolist() == [True, True, False, False, False, False]


@quick
@given(seed=seeds, count=st.integers(1, 80), rho=rhos, num_classes=st.integers(1, 4))
def test_the_filter_keeps_the_share_rho_of_every_class(seed: int, count: int, rho: float, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(count, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (count,), generator=generator)
    accepted = torch.rand(count, generator=generator) < 0.8
    kept, thresholds = teacher_filter(make_scores(errors=errors, labels=labels), accepted, rho, num_classes=num_classes)
    assert thresholds.shape == (num_classes,)
    assert not (kept & ~accepted).any()
    for label in range(num_classes):
        members = accepted & (labels == label)
        # the sample at the quantile is dropped: n samples leave between rho (n - 1) and rho (n - 1) + 1
        position = rho * (int(members.sum()) - 1)
        assert position - 1e-6 <= (kept & members).sum() <= max(0, position + 1)
        if (kept & members).any() and (members & ~kept).any():
            assert errors[kept & members].max() <= errors[members & ~kept].min()


@quick
@given(seed=seeds, count=st.integers(1, 80), rho=rhos)
def test_the_filter_of_scalars_has_one_threshold(seed: int, count: int, rho: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(count, generator=generator, dtype=torch.float64)
    accepted = torch.rand(count, generator=generator) < 0.8
    assume(accepted.any())
    kept, threshold = teacher_filter(make_scores(errors=errors), accepted, rho, num_classes=None)
    assert threshold.shape == ()
    position = rho * (int(accepted.sum()) - 1)
    assert position - 1e-6 <= kept.sum() <= position + 1
    assert not (accepted & (errors < threshold) & ~kept).any()
    assert (errors[kept] <= threshold).all()


@quick
@given(seed=seeds, low=rhos, high=rhos, num_classes=st.sampled_from([None, 3]))
def test_a_larger_rho_keeps_all_that_a_smaller_one_keeps(seed, low, high, num_classes) -> None:
    low, high = sorted((low, high))
    generator = torch.Generator().manual_seed(seed)
    scores = make_scores(
        errors=torch.rand(30, generator=generator), labels=torch.randint(3, (30,), generator=generator)
    )
    accepted = torch.ones(30, dtype=torch.bool)
    few, many = (teacher_filter(scores, accepted, rho, num_classes=num_classes)[0] for rho in (low, high))
    assert not (few & ~many).any()


@pytest.mark.parametrize("num_classes", [None, 2])
def test_nothing_accepted_leaves_nothing_and_is_no_crash(num_classes: int | None) -> None:
    """The first wave may leave nothing; the next one is then drawn."""
    scores = make_scores(errors=torch.rand(4), labels=torch.tensor([0, 1, 0, 1]))
    kept, _ = teacher_filter(scores, torch.zeros(4, dtype=torch.bool), 0.9, num_classes=num_classes)
    assert not kept.any()


@quick
@given(errors=st.lists(st.integers(0, 3), min_size=1, max_size=40), rho=rhos, num_classes=st.sampled_from([None, 1]))
def test_ties_do_not_empty_the_selection(errors: list[int], rho: float, num_classes: int | None) -> None:
    """At least as many stay as of distinct errors, and whatever stays is no worse than what goes."""
    errors = torch.tensor(errors, dtype=torch.float32)
    everyone = torch.ones(len(errors), dtype=torch.bool)
    kept, _ = teacher_filter(make_scores(errors=errors), everyone, rho, num_classes=num_classes)
    assert kept.sum() >= max(1, int(rho * (len(errors) - 1)))
    assert kept.all() or errors[kept].max() < errors[~kept].min()


def test_a_sure_teacher_leaves_samples() -> None:
    """From 17 nats on, a cross-entropy is exactly 0 in float32: a good teacher ties on most samples of a class."""
    logits = torch.tensor([[0.0, 17.0], [0.0, 18.0], [0.0, 40.0], [1.0, 0.0]])
    errors = torch.nn.functional.cross_entropy(logits, torch.ones(4, dtype=torch.int64), reduction="none")
    assert errors[:3].tolist() == [0, 0, 0]
    kept, _ = teacher_filter(make_scores(errors=errors), torch.ones(4, dtype=torch.bool), 0.9, num_classes=1)
    assert kept.tolist() == [True, True, True, False]


# --- taking -----------------------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, count=st.integers(1, 60), num_samples=st.integers(1, 60), num_classes=st.integers(1, 5))
def test_what_is_taken_is_balanced_ascending_and_the_first_of_each_class(seed, count, num_samples, num_classes) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=generator)
    kept = torch.rand(count, generator=generator) < 0.7
    indices = take(kept, labels, num_samples, num_classes=num_classes)
    assert (indices.diff() > 0).all()
    assert kept[indices].all()
    wanted = [num_samples // num_classes] * num_classes
    wanted[-1] += num_samples % num_classes
    for label in range(num_classes):
        members = (kept & (labels == label)).nonzero().flatten()
        mine = indices[labels[indices] == label]
        assert mine.tolist() == members[: wanted[label]].tolist()


@quick
@given(seed=seeds, count=st.integers(0, 60), num_samples=st.integers(1, 60))
def test_scalars_are_taken_in_order(seed: int, count: int, num_samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(count, generator=generator) < 0.7
    indices = take(kept, torch.rand(count, generator=generator), num_samples, num_classes=None)
    assert indices.tolist() == kept.nonzero().flatten().tolist()[:num_samples]


@quick
@given(seed=seeds, few=st.integers(1, 20), more=st.integers(0, 20), num_classes=st.sampled_from([None, 1, 3]))
def test_asking_for_more_or_drawing_more_keeps_what_was_taken(seed, few, more, num_classes) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, kept = torch.randint(3 if num_classes == 3 else 1, (90,), generator=generator), torch.ones(90).bool()
    factor = num_classes or 1
    first = take(kept, labels, factor * few, num_classes=num_classes)
    assert set(first.tolist()) <= set(take(kept, labels, factor * (few + more), num_classes=num_classes).tolist())
    if len(first) == factor * few:
        longer, more_labels = torch.cat([kept, kept]), torch.cat([labels, labels])
        assert torch.equal(take(longer, more_labels, factor * few, num_classes=num_classes), first)


def test_counts_are_capped_by_what_there_is() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    assert balanced_fake_counts(labels=labels, num_fake=8, num_classes=3).tolist() == [2, 0, 2]
    assert balanced_fake_counts(labels=labels, num_fake=2, num_classes=3).tolist() == [0, 0, 2]
    assert balanced_fake_counts(labels=labels[:0], num_fake=8, num_classes=3).tolist() == [0, 0, 0]


# --- rho from the validation split ------------------------------------------------------------------------------------


def test_the_rho_with_the_smallest_error_is_chosen_and_ties_go_to_the_larger() -> None:
    grid = torch.tensor([0.5, 0.7, 0.9, 1.0])
    assert select_rho(rhos=grid, validation_errors=torch.tensor([3.0, 1.0, 2.0, 4.0])).item() == pytest.approx(0.7)
    assert select_rho(rhos=grid, validation_errors=torch.tensor([1.0, 2.0, 1.0, 4.0])).item() == pytest.approx(0.9)
    assert select_rho(rhos=grid[:1], validation_errors=torch.tensor([2.0])).item() == 0.5
